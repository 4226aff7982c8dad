//! Which execution provider runs which node.

use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer;
use ort::session::Session;
use ort::sys::{OrtEpAssignedNode, OrtEpAssignedSubgraph, OrtStatusPtr};

use super::failed;
use crate::{Placement, RuntimeError};

/// Session setting that makes ONNX Runtime keep what is read here.
pub(super) const RECORD: &str = "session.record_ep_graph_assignment_info";

/// Where each node runs. The session must have been made with [`RECORD`] set to `1`.
///
/// # Errors
/// What ONNX Runtime said.
pub(super) fn placements(session: &Session) -> Result<Vec<Placement>, RuntimeError> {
    let api = ort::api();
    let mut found = Vec::new();
    // SAFETY: the session is alive; the lists and texts belong to it and are copied at once.
    unsafe {
        let groups: &[*const OrtEpAssignedSubgraph] =
            list(|items, count| (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), items, count))?;
        for &group in groups {
            let provider = text(|out| (api.EpAssignedSubgraph_GetEpName)(group, out))?;
            let nodes: &[*const OrtEpAssignedNode] =
                list(|items, count| (api.EpAssignedSubgraph_GetNodes)(group, items, count))?;
            for &node in nodes {
                let domain = text(|out| (api.EpAssignedNode_GetDomain)(node, out))?;
                let operator = text(|out| (api.EpAssignedNode_GetOperatorType)(node, out))?;
                found.push(Placement {
                    provider: provider.clone(),
                    node: text(|out| (api.EpAssignedNode_GetName)(node, out))?,
                    operator: qualified(&domain, operator),
                });
            }
        }
    }
    Ok(found)
}

/// The nodes that another execution provider got.
pub(super) fn not_on(provider: &str, placements: Vec<Placement>) -> Vec<Placement> {
    placements.into_iter().filter(|p| p.provider != provider).collect()
}

fn qualified(domain: &str, operator: String) -> String {
    if domain.is_empty() || domain == "ai.onnx" { operator } else { format!("{domain}::{operator}") }
}

/// # Safety
/// `get` gives a list that lives as long as the caller uses it.
unsafe fn list<'a, T>(
    get: impl FnOnce(*mut *const *const T, *mut usize) -> OrtStatusPtr,
) -> Result<&'a [*const T], RuntimeError> {
    let (mut items, mut count) = (ptr::null(), 0);
    // SAFETY: as the caller promises; no items may come with a null pointer, which is no slice.
    unsafe {
        ort::Error::result_from_status(get(&mut items, &mut count)).map_err(failed)?;
        Ok(if count == 0 || items.is_null() { &[] } else { std::slice::from_raw_parts(items, count) })
    }
}

/// # Safety
/// `get` gives a C string or null.
unsafe fn text(get: impl FnOnce(*mut *const c_char) -> OrtStatusPtr) -> Result<String, RuntimeError> {
    let mut text = ptr::null();
    // SAFETY: as the caller promises.
    unsafe {
        ort::Error::result_from_status(get(&mut text)).map_err(failed)?;
        Ok(if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_written_with_their_domain() {
        let placement = Placement {
            provider: "CPUExecutionProvider".into(),
            node: "n1".into(),
            operator: qualified("com.microsoft", "FusedConv".into()),
        };
        assert_eq!(placement.to_string(), "n1 (com.microsoft::FusedConv) on CPUExecutionProvider");
        assert_eq!(qualified("ai.onnx", "Relu".into()), "Relu");
    }

    #[test]
    fn nodes_on_the_processor_are_singled_out() {
        let on = |provider: &str, node: &str| Placement {
            provider: provider.into(),
            node: node.into(),
            operator: "Relu".into(),
        };
        let placed = vec![on("CUDAExecutionProvider", "a"), on("CPUExecutionProvider", "b")];
        assert_eq!(not_on("CUDAExecutionProvider", placed), [on("CPUExecutionProvider", "b")]);
    }
}
