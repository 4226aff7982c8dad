//! A number of bytes in the open dimensions of a model: a sum of products, equal products collected.
//!
//! A factor is a dimension as inference names it: a symbol, or an expression of symbols in braces.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use dmopt_ir::{Dim, TensorType};

/// `sum_i c_i * d_i1 * d_i2 * ...`: the coefficients by factors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Expression(BTreeMap<Vec<Arc<str>>, u128>);

impl Expression {
    /// Adds a number.
    pub fn add_bytes(&mut self, bytes: u64) {
        self.add(Vec::new(), bytes.into());
    }

    /// Adds the bytes of a tensor; `None` where a size is not known, or is not that of the elements' number.
    pub fn add_tensor(&mut self, ty: &TensorType) -> Option<()> {
        let bits = ty.dtype.bits().filter(|bits| bits % 8 == 0)?;
        let (mut coefficient, mut factors) = (u128::from(bits / 8), Vec::new());
        for dim in ty.shape.as_ref()? {
            match dim {
                Dim::Known(size) => coefficient = coefficient.checked_mul((*size).into())?,
                Dim::Symbol(name) => factors.push(name.clone()),
                Dim::Unknown => return None,
            }
        }
        factors.sort_unstable();
        self.add(factors, coefficient);
        Some(())
    }

    /// True if there is no symbol in it.
    pub fn is_number(&self) -> bool {
        self.0.keys().all(Vec::is_empty)
    }

    fn add(&mut self, factors: Vec<Arc<str>>, coefficient: u128) {
        if coefficient > 0 {
            let sum = self.0.entry(factors).or_default();
            *sum = sum.saturating_add(coefficient);
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Products of many factors first, the number last.
        let mut terms: Vec<_> = self.0.iter().collect();
        terms.sort_by_key(|(factors, _)| std::cmp::Reverse(factors.len()));
        for (i, (factors, coefficient)) in terms.iter().enumerate() {
            let plus = if i > 0 { " + " } else { "" };
            write!(f, "{plus}{coefficient}")?;
            factors.iter().try_for_each(|name| write!(f, "*{}", factor(name)))?;
        }
        if terms.is_empty() { f.write_str("0") } else { Ok(()) }
    }
}

/// The name of a dimension as a factor.
fn factor(name: &str) -> String {
    let is_word = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
    match name.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(inner) if is_sum(inner) => format!("({inner})"),
        Some(inner) => inner.to_string(),
        None if is_word(name) => name.to_string(),
        None => format!("`{name}`"),
    }
}

/// True if there is a sum or difference outside of all parentheses.
fn is_sum(text: &str) -> bool {
    let mut depth = 0;
    text.starts_with('-')
        || text.split(' ').any(|part| {
            let outside = depth == 0 && matches!(part, "+" | "-");
            depth += part.matches('(').count() as i64 - part.matches(')').count() as i64;
            outside
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::DType;

    fn tensor(dims: &[&str]) -> TensorType {
        let dim = |text: &&str| text.parse().map_or_else(|_| Dim::Symbol((*text).into()), Dim::Known);
        TensorType { dtype: DType::F32, shape: Some(dims.iter().map(dim).collect()) }
    }

    fn sum(tensors: &[&[&str]]) -> String {
        let mut sum = Expression::default();
        tensors.iter().for_each(|dims| sum.add_tensor(&tensor(dims)).unwrap());
        sum.to_string()
    }

    #[test]
    fn equal_products_are_collected_whatever_the_order_of_their_factors() {
        assert_eq!(sum(&[&["N", "3", "H"], &["H", "2", "N"], &["7"], &["N"]]), "20*H*N + 4*N + 28");
        assert_eq!(sum(&[&["N", "0"]]), "0");
    }

    #[test]
    fn factors_can_be_read_back() {
        assert_eq!(sum(&[&["{floor((H + 1)/2)}"]]), "4*floor((H + 1)/2)");
        assert_eq!(sum(&[&["{2*H + 1}", "N"]]), "4*N*(2*H + 1)");
        assert_eq!(sum(&[&["{floor(H/2) + 1}"]]), "4*(floor(H/2) + 1)");
        assert_eq!(sum(&[&["my batch"]]), "4*`my batch`");
    }

    #[test]
    fn what_is_not_known_is_no_expression() {
        let mut sum = Expression::default();
        let unknown = TensorType { dtype: DType::F32, shape: Some(vec![Dim::Unknown]) };
        assert_eq!(sum.add_tensor(&unknown), None);
        assert_eq!(sum.add_tensor(&TensorType { dtype: DType::F32, shape: None }), None);
        assert_eq!(sum.add_tensor(&TensorType { dtype: DType::String, shape: Some(vec![]) }), None);
    }
}
