//! The key-value pairs that a file says about its model (`metadata_props`).

use dmopt_ir::Model;

use crate::error::ExportError;
use crate::extra::{pack, unpack};
use crate::schema::{ModelProto, StringStringEntryProto};

/// What a model says under this key.
pub fn metadata(model: &Model, key: &str) -> Option<String> {
    let proto: ModelProto = unpack(&model.extra).ok()?;
    proto.metadata_props.into_iter().find(|entry| entry.key.as_deref() == Some(key))?.value
}

/// Makes a model say this under a key, or nothing.
///
/// # Errors
/// Its `extra` does not come from [`import`](crate::import()).
pub fn set_metadata(model: &mut Model, key: &str, value: Option<String>) -> Result<(), ExportError> {
    let mut proto: ModelProto = unpack(&model.extra)?;
    proto.metadata_props.retain(|entry| entry.key.as_deref() != Some(key));
    if value.is_some() {
        proto.metadata_props.push(StringStringEntryProto {
            key: Some(key.to_string()),
            value,
            ..Default::default()
        });
    }
    model.extra = pack(&proto);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_about_a_model_can_be_changed() {
        let mut model = dmopt_ir::text::parse_model("f (float[2] x) => (float[2] y) { y = Neg(x) }").unwrap();
        let before = model.extra.clone();
        assert_eq!(metadata(&model, "a"), None);
        for value in ["1", "2"] {
            set_metadata(&mut model, "a", Some(value.to_string())).unwrap();
            assert_eq!(metadata(&model, "a").as_deref(), Some(value));
        }
        let proto = crate::export(&model, &crate::ExportOptions::default()).unwrap();
        assert_eq!(proto.metadata_props.len(), 1);
        set_metadata(&mut model, "a", None).unwrap();
        assert_eq!(model.extra, before);
    }
}
