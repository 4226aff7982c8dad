//! Sizes as integer expressions over the symbols of the model, in one canonical form, so that sizes that are
//! equal by simple algebra are the same expression.
//!
//! A symbol is at least 1: what holds for empty inputs is not asked here. (Exporters assume as much, and a
//! `Reshape` that divides by a symbol could not run otherwise.)
//!
//! An expression is a sum of integer multiples of products of factors. A factor is a symbol, `floor(e/k)` with
//! `k >= 2`, or `max(0, e)`. Rules that keep the form canonical:
//!
//! - `floor((k*q + r)/k) = q + floor(r/k)`: coefficients below `floor` lie in `0..k`;
//! - `floor((g*p + c)/(g*m)) = floor((p + floor(c/g))/m)`;
//! - `floor((floor(a/m) + b)/n) = floor((a + m*b)/(m*n))`;
//! - `max(0, -e) = max(0, e) - e`: the first coefficient below `max` is positive;
//! - `max(0, g*e) = g*max(0, e)`; and `max(0, e) = e` or `0` where the sign of `e` is certain.
//!
//! As a dimension, an expression that is not one symbol is written in braces, `{floor((H + 1)/2)}`. A name that a
//! file gives to a dimension is read as an expression only if it is exactly what this module would write;
//! any other name is a symbol, and where it is not an identifier, an expression quotes it with backticks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::Dim;

/// Bounds that keep the work for one operator constant; what would grow beyond is an unknown size.
const MAX_TERMS: usize = 16;
const MAX_FACTORS: usize = 6;
const MAX_WEIGHT: usize = 32;
const MAX_DEPTH: usize = 3;
const MAX_TEXT: usize = 200;

/// An integer that is known as a number or as an expression. Values beyond `i64` do not exist here: arithmetic
/// that would leave it yields `None`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Size {
    Known(i64),
    /// At least one term has a factor; sorted by factors, no coefficient is zero.
    Sum(Arc<[Term]>),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Term {
    /// Sorted; empty for the constant term.
    factors: Vec<Factor>,
    coefficient: i64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Factor {
    Symbol(Arc<str>),
    Floor(Size, i64),
    Positive(Size),
}

impl Size {
    /// The size of a dimension; `None` for one that nothing is known about.
    pub fn of(dim: &Dim) -> Option<Size> {
        match dim {
            Dim::Known(n) => i64::try_from(*n).ok().map(Size::Known),
            Dim::Symbol(name) => Some(Size::parse(name).unwrap_or_else(|| Size::symbol(name))),
            Dim::Unknown => None,
        }
    }

    /// The dimension of this size: unknown where it would be negative or too long to write.
    pub fn dim(&self) -> Dim {
        match self {
            Size::Known(n) => u64::try_from(*n).map_or(Dim::Unknown, Dim::Known),
            Size::Sum(terms) => match &terms[0].factors[..] {
                [Factor::Symbol(name)] if self.is_factor() => Dim::Symbol(name.clone()),
                _ => self.braced(),
            },
        }
    }

    fn is_factor(&self) -> bool {
        matches!(self, Size::Sum(terms) if matches!(&**terms, [t] if t.factors.len() == 1 && t.coefficient == 1))
    }

    fn braced(&self) -> Dim {
        let text = format!("{{{self}}}");
        // A backtick within a name could not be read back.
        if text.len() > MAX_TEXT || self.any_symbol(&|name| name.contains('`')) {
            return Dim::Unknown;
        }
        Dim::Symbol(text.into())
    }

    pub fn symbol(name: &Arc<str>) -> Size {
        Size::Sum(Arc::new([Term { factors: vec![Factor::Symbol(name.clone())], coefficient: 1 }]))
    }

    pub fn known(&self) -> Option<i64> {
        match self {
            Size::Known(n) => Some(*n),
            Size::Sum(_) => None,
        }
    }

    fn terms(&self) -> Vec<Term> {
        match self {
            Size::Known(0) => Vec::new(),
            Size::Known(n) => vec![Term { factors: Vec::new(), coefficient: *n }],
            Size::Sum(terms) => terms.to_vec(),
        }
    }

    fn collect(terms: impl IntoIterator<Item = Term>) -> Option<Size> {
        let mut sum = BTreeMap::<Vec<Factor>, i64>::new();
        for Term { factors, coefficient } in terms {
            let entry = sum.entry(factors).or_default();
            *entry = entry.checked_add(coefficient)?;
        }
        let mut terms: Vec<Term> = Vec::with_capacity(sum.len());
        for (factors, coefficient) in sum {
            if factors.len() > MAX_FACTORS {
                return None;
            }
            if coefficient != 0 {
                terms.push(Term { factors, coefficient });
            }
        }
        match terms.as_slice() {
            [] => Some(Size::Known(0)),
            [only] if only.factors.is_empty() => Some(Size::Known(only.coefficient)),
            _ if terms.len() > MAX_TERMS => None,
            _ => Some(Size::Sum(terms.into())).filter(|s| s.weight() <= MAX_WEIGHT && s.depth() <= MAX_DEPTH),
        }
    }

    fn inner(&self) -> impl Iterator<Item = Option<&Size>> {
        let terms: &[Term] = match self {
            Size::Known(_) => &[],
            Size::Sum(terms) => terms,
        };
        terms.iter().flat_map(|t| &t.factors).map(|f| match f {
            Factor::Symbol(_) => None,
            Factor::Floor(inner, _) | Factor::Positive(inner) => Some(inner),
        })
    }

    /// Number of factors, those below others included.
    fn weight(&self) -> usize {
        self.inner().map(|inner| 1 + inner.map_or(0, Size::weight)).sum()
    }

    /// How deep factors lie below each other.
    fn depth(&self) -> usize {
        self.inner().map(|inner| inner.map_or(0, |i| 1 + i.depth())).max().unwrap_or(0)
    }

    pub fn add(&self, other: &Size) -> Option<Size> {
        match (self, other) {
            (Size::Known(a), Size::Known(b)) => a.checked_add(*b).map(Size::Known),
            (a, Size::Known(0)) | (Size::Known(0), a) => Some(a.clone()),
            _ => Size::collect(self.terms().into_iter().chain(other.terms())),
        }
    }

    pub fn sub(&self, other: &Size) -> Option<Size> {
        match (self, other) {
            (Size::Known(a), Size::Known(b)) => a.checked_sub(*b).map(Size::Known),
            (a, Size::Known(0)) => Some(a.clone()),
            _ => self.add(&other.times(-1)?),
        }
    }

    pub fn plus(&self, n: i64) -> Option<Size> {
        self.add(&Size::Known(n))
    }

    pub fn times(&self, k: i64) -> Option<Size> {
        match self {
            _ if k == 1 => Some(self.clone()),
            Size::Known(n) => n.checked_mul(k).map(Size::Known),
            Size::Sum(terms) => {
                let scale = |t: &Term| {
                    Some(Term { factors: t.factors.clone(), coefficient: t.coefficient.checked_mul(k)? })
                };
                Size::collect(terms.iter().map(scale).collect::<Option<Vec<_>>>()?)
            }
        }
    }

    pub fn mul(&self, other: &Size) -> Option<Size> {
        match (self, other) {
            (a, Size::Known(k)) | (Size::Known(k), a) => a.times(*k),
            (Size::Sum(a), Size::Sum(b)) => {
                if a.len() * b.len() > MAX_TERMS * MAX_TERMS {
                    return None;
                }
                let mut terms = Vec::with_capacity(a.len() * b.len());
                for (x, y) in a.iter().flat_map(|x| b.iter().map(move |y| (x, y))) {
                    let mut factors = [x.factors.as_slice(), &y.factors].concat();
                    factors.sort_unstable();
                    terms.push(Term { factors, coefficient: x.coefficient.checked_mul(y.coefficient)? });
                }
                Size::collect(terms)
            }
        }
    }

    /// `floor(self/k)`, for `k >= 1`.
    pub fn div_floor(&self, k: i64) -> Option<Size> {
        match self {
            _ if k < 1 => None,
            _ if k == 1 => Some(self.clone()),
            Size::Known(n) => Some(Size::Known(n.div_euclid(k))),
            Size::Sum(terms) => {
                let part = |f: fn(i64, i64) -> i64| {
                    Size::collect(
                        terms
                            .iter()
                            .map(|t| Term { factors: t.factors.clone(), coefficient: f(t.coefficient, k) }),
                    )
                };
                let (quotient, rest) = (part(i64::div_euclid)?, part(i64::rem_euclid)?);
                quotient.add(&rest.floor_factor(k)?)
            }
        }
    }

    /// `floor(self/k)` for coefficients in `0..k`.
    fn floor_factor(&self, k: i64) -> Option<Size> {
        let Size::Sum(terms) = self else { return Some(Size::Known(0)) };
        let nested = |t: &Term| t.coefficient == 1 && matches!(t.factors.as_slice(), [Factor::Floor(..)]);
        if let Some(at) = terms.iter().position(nested)
            && let [Factor::Floor(inner, m)] = terms[at].factors.as_slice()
        {
            let others = terms.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, t)| t.clone());
            let rest = Size::collect(others)?;
            return inner.add(&rest.times(*m)?)?.div_floor(k.checked_mul(*m)?);
        }
        let symbolic = terms.iter().filter(|t| !t.factors.is_empty());
        let g = symbolic.fold(k, |g, t| gcd(g, t.coefficient));
        if g == 1 {
            return Size::factor(Factor::Floor(self.clone(), k));
        }
        let reduced = Size::collect(
            terms
                .iter()
                .map(|t| Term { factors: t.factors.clone(), coefficient: t.coefficient.div_euclid(g) }),
        )?;
        reduced.div_floor(k / g)
    }

    /// `ceil(self/k)`, for `k >= 1`.
    pub fn div_ceil(&self, k: i64) -> Option<Size> {
        self.plus(k.checked_sub(1)?)?.div_floor(k)
    }

    /// `self/divisor` where that is certainly an integer (and the divisor not zero).
    pub fn div_exact(&self, divisor: &Size) -> Option<Size> {
        if self == divisor && *self != Size::Known(0) {
            return Some(Size::Known(1));
        }
        let divisors = divisor.terms();
        let [by] = divisors.as_slice() else { return None };
        let divided = self.terms().into_iter().map(|mut term| {
            for factor in &by.factors {
                let at = term.factors.iter().position(|f| f == factor)?;
                term.factors.remove(at);
            }
            let exact = term.coefficient.checked_rem(by.coefficient)? == 0;
            term.coefficient = term.coefficient.checked_div(by.coefficient)?;
            exact.then_some(term)
        });
        Size::collect(divided.collect::<Option<Vec<_>>>()?)
    }

    /// `self/divisor` for a division that an operator only accepts without a remainder.
    pub fn divided(&self, divisor: &Size) -> Option<Size> {
        match self {
            Size::Known(_) => self.div_exact(divisor),
            Size::Sum(_) => self.div_exact(divisor).or_else(|| self.div_floor(divisor.known()?)),
        }
    }

    /// `max(0, self)`.
    pub fn positive(&self) -> Option<Size> {
        let Size::Sum(terms) = self else { return self.known().map(|n| Size::Known(n.max(0))) };
        if self.is_nonnegative() {
            return Some(self.clone());
        }
        let negated = self.times(-1)?;
        if negated.is_nonnegative() {
            return Some(Size::Known(0));
        }
        let first = terms.iter().find(|t| !t.factors.is_empty())?;
        if first.coefficient < 0 {
            return negated.positive()?.add(self);
        }
        let g = terms.iter().fold(0, |g, t| gcd(g, t.coefficient));
        let reduced = self.div_exact(&Size::Known(g))?;
        Size::factor(Factor::Positive(reduced))?.times(g)
    }

    pub fn maximum(&self, other: &Size) -> Option<Size> {
        other.sub(self)?.positive()?.add(self)
    }

    pub fn minimum(&self, other: &Size) -> Option<Size> {
        self.sub(&self.sub(other)?.positive()?)
    }

    /// True when the value is certainly at least 0.
    pub fn is_nonnegative(&self) -> bool {
        match self {
            Size::Known(n) => *n >= 0,
            Size::Sum(_) => {
                self.nonnegative_within(4)
                    || self
                        .replace(&|name| Size::symbol(name).plus(1))
                        .is_some_and(|s| s.nonnegative_within(4))
            }
        }
    }

    /// As [`is_nonnegative`](Size::is_nonnegative), for symbols of at least 0.
    fn nonnegative_within(&self, depth: u32) -> bool {
        let Size::Sum(terms) = self else { return self.known().is_some_and(|n| n >= 0) };
        let plain = |f: &Factor| match f {
            Factor::Symbol(_) | Factor::Positive(_) => true,
            Factor::Floor(inner, _) => depth > 0 && inner.nonnegative_within(depth - 1),
        };
        let doubtful = |t: &&Term| t.coefficient < 0 || !t.factors.iter().all(plain);
        if !terms.iter().any(|t| doubtful(&t)) {
            return true;
        }
        let bounded = |t: &&Term| matches!(t.factors.as_slice(), [Factor::Floor(..) | Factor::Positive(_)]);
        let mut doubts = terms.iter().filter(doubtful);
        let Some(doubt) = doubts.find(bounded).or_else(|| terms.iter().find(bounded)).filter(|_| depth > 0)
        else {
            return false;
        };
        // The factor is bounded by something simpler; the rest decides.
        let rest = || Size::collect(terms.iter().filter(|t| *t != doubt).cloned());
        let with = |scale: i64, bound: Option<Size>| {
            let bound = bound.and_then(|b| b.times(doubt.coefficient));
            rest().and_then(|r| r.times(scale)?.add(&bound?)).is_some_and(|s| s.nonnegative_within(depth - 1))
        };
        match doubt.factors.as_slice() {
            // e - k + 1 <= k*floor(e/k) <= e
            [Factor::Floor(inner, k)] if doubt.coefficient < 0 => with(*k, Some(inner.clone())),
            [Factor::Floor(inner, k)] => with(*k, inner.plus(1 - *k)),
            // max(0, e) is either.
            [Factor::Positive(inner)] => with(1, Some(Size::Known(0))) && with(1, Some(inner.clone())),
            _ => false,
        }
    }

    fn factor(factor: Factor) -> Option<Size> {
        Size::collect([Term { factors: vec![factor], coefficient: 1 }])
    }

    /// Calls `f` for each symbol in the expression.
    pub fn each_symbol(&self, f: &mut dyn FnMut(&str)) {
        let Size::Sum(terms) = self else { return };
        for factor in terms.iter().flat_map(|t| &t.factors) {
            match factor {
                Factor::Symbol(name) => f(name),
                Factor::Floor(inner, _) | Factor::Positive(inner) => inner.each_symbol(f),
            }
        }
    }

    pub fn any_symbol(&self, test: &dyn Fn(&str) -> bool) -> bool {
        let mut found = false;
        self.each_symbol(&mut |name| found |= test(name));
        found
    }

    /// The expression with sizes put in place of symbols.
    pub fn substitute(&self, size_of: &dyn Fn(&str) -> Option<u64>) -> Option<Size> {
        self.replace(&|name| match size_of(name) {
            Some(n) => i64::try_from(n).ok().map(Size::Known),
            None => Some(Size::symbol(name)),
        })
    }

    fn replace(&self, new: &dyn Fn(&Arc<str>) -> Option<Size>) -> Option<Size> {
        let Size::Sum(terms) = self else { return Some(self.clone()) };
        let mut sum = Size::Known(0);
        for term in terms.iter() {
            let mut product = Size::Known(term.coefficient);
            for factor in &term.factors {
                let factor = match factor {
                    Factor::Symbol(name) => new(name)?,
                    Factor::Floor(inner, k) => inner.replace(new)?.div_floor(*k)?,
                    Factor::Positive(inner) => inner.replace(new)?.positive()?,
                };
                product = product.mul(&factor)?;
            }
            sum = sum.add(&product)?;
        }
        Some(sum)
    }

    /// The expression of a dimension's name, if this module wrote it.
    fn parse(name: &str) -> Option<Size> {
        let inner = name.strip_prefix('{')?.strip_suffix('}')?;
        if name.len() > MAX_TEXT {
            return None;
        }
        let mut parser = Parser { rest: inner, depth: 0 };
        let size = parser.sum()?;
        (parser.rest.is_empty() && size.dim() == Dim::Symbol(name.into())).then_some(size)
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a.wrapping_rem(b));
    }
    a.saturating_abs()
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        && name != "floor"
        && name != "max"
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size::Sum(terms) = self else { return write!(f, "{}", self.known().unwrap_or_default()) };
        // The constant sorts first and reads best last.
        let (constant, symbolic): (Vec<&Term>, Vec<&Term>) = terms.iter().partition(|t| t.factors.is_empty());
        for (i, term) in symbolic.into_iter().chain(constant).enumerate() {
            match (i, term.coefficient < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let size = term.coefficient.unsigned_abs();
            if size != 1 || term.factors.is_empty() {
                write!(f, "{size}")?;
            }
            for (j, factor) in term.factors.iter().enumerate() {
                let times = if j > 0 || size != 1 { "*" } else { "" };
                write!(f, "{times}{factor}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Factor::Symbol(name) if is_identifier(name) => f.write_str(name),
            Factor::Symbol(name) => write!(f, "`{name}`"),
            Factor::Floor(inner, k) if inner.is_factor() => write!(f, "floor({inner}/{k})"),
            Factor::Floor(inner, k) => write!(f, "floor(({inner})/{k})"),
            Factor::Positive(inner) => write!(f, "max(0, {inner})"),
        }
    }
}

/// Reads what `Display` writes.
struct Parser<'a> {
    rest: &'a str,
    depth: u32,
}

impl Parser<'_> {
    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn while_(&mut self, keep: impl Fn(char) -> bool) -> &str {
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn sum(&mut self) -> Option<Size> {
        let negative = self.take("-");
        let mut sum = self.product(negative)?;
        loop {
            let negative = self.rest.starts_with(" - ");
            if !self.take(" + ") && !self.take(" - ") {
                return Some(sum);
            }
            sum = sum.add(&self.product(negative)?)?;
        }
    }

    fn product(&mut self, negative: bool) -> Option<Size> {
        let mut product = self.factor()?;
        while self.take("*") {
            product = product.mul(&self.factor()?)?;
        }
        if negative { product.times(-1) } else { Some(product) }
    }

    fn number(&mut self) -> Option<i64> {
        self.while_(|c| c.is_ascii_digit()).parse().ok()
    }

    fn factor(&mut self) -> Option<Size> {
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            return self.number().map(Size::Known);
        }
        if self.take("`") {
            let name: Arc<str> = self.while_(|c| c != '`').into();
            return self.take("`").then(|| Size::symbol(&name));
        }
        let name: Arc<str> = self.while_(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.').into();
        if is_identifier(&name) {
            return Some(Size::symbol(&name));
        }
        self.depth += 1;
        if self.depth > 32 {
            return None;
        }
        match &*name {
            "floor" if self.take("(") => {
                let inner =
                    if self.take("(") { self.sum().filter(|_| self.take(")"))? } else { self.factor()? };
                let k = if self.take("/") { self.number()? } else { return None };
                if self.take(")") { inner.div_floor(k) } else { None }
            }
            "max" if self.take("(0, ") => {
                let inner = self.sum()?;
                if self.take(")") { inner.positive() } else { None }
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(name: &str) -> Size {
        Size::symbol(&name.into())
    }

    fn text(size: Option<Size>) -> String {
        size.map_or("?".to_string(), |s| s.to_string())
    }

    /// The value of an expression with `H`, `W`, `N` replaced.
    fn at(size: &Size, h: u64, w: u64, n: u64) -> i64 {
        let value = size.substitute(&|name| match name {
            "H" => Some(h),
            "W" => Some(w),
            "N" => Some(n),
            _ => None,
        });
        value.unwrap().known().unwrap()
    }

    #[test]
    fn equal_sizes_have_one_form() {
        let h = s("H");
        // 3x3/2 with padding 1, 7x7/2 with padding 3, and 1x1/2 without.
        let conv = |k: i64, p: i64, stride| h.plus(2 * p - k)?.div_floor(stride)?.plus(1);
        assert_eq!(text(conv(3, 1, 2)), "floor((H + 1)/2)");
        assert_eq!(conv(3, 1, 2), conv(7, 3, 2));
        assert_eq!(conv(3, 1, 2), conv(1, 0, 2));
        assert_eq!(conv(3, 1, 1), Some(h.clone()));
        // Twice halved is quartered.
        let twice = h.div_ceil(2).and_then(|x| x.div_ceil(2));
        assert_eq!(twice, h.div_ceil(4));
        // Products commute and cancel.
        let nhw = s("N").mul(&h).and_then(|x| x.mul(&s("W"))).unwrap();
        assert_eq!(nhw.div_exact(&s("W").mul(&h).unwrap()), Some(s("N")));
        assert_eq!(nhw.times(12).unwrap().div_exact(&nhw.times(4).unwrap()), Some(Size::Known(3)));
        assert_eq!(h.plus(1).unwrap().div_exact(&h), None);
    }

    #[test]
    fn slices_that_split_a_size_add_up_to_it() {
        // x[:3] and x[3:] of unknown length.
        let (h, three) = (s("H"), Size::Known(3));
        let head = h.minimum(&three).unwrap();
        let tail = h.sub(&three).unwrap().positive().unwrap();
        assert_eq!(tail.to_string(), "max(0, H - 3)");
        assert_eq!(head.add(&tail), Some(h));
    }

    #[test]
    fn signs_are_certain_only_when_they_hold_for_every_size() {
        let h = s("H");
        assert!(h.is_nonnegative());
        assert!(h.plus(-1).unwrap().is_nonnegative());
        assert!(!h.plus(-2).unwrap().is_nonnegative());
        assert!(h.plus(7).unwrap().div_floor(8).unwrap().plus(-1).unwrap().is_nonnegative());
        assert!(h.sub(&h.div_floor(2).unwrap()).unwrap().is_nonnegative());
        assert!(h.sub(&h.minimum(&Size::Known(7)).unwrap()).unwrap().is_nonnegative());
        assert!(!h.div_floor(2).unwrap().sub(&h).unwrap().is_nonnegative());
        // What is missing to a multiple of 7.
        let rest = h.sub(&h.div_floor(7).unwrap().times(7).unwrap()).unwrap();
        let missing = Size::Known(7).sub(&rest).unwrap();
        assert!(missing.is_nonnegative() && !missing.plus(-2).unwrap().is_nonnegative());
        assert!(!h.plus(-5).unwrap().div_floor(2).unwrap().is_nonnegative());
    }

    #[test]
    fn names_that_this_module_did_not_write_are_symbols() {
        for name in
            ["batch-size", "N*2", "{N*2}", "{N}", "floor(H/2)", "{", "}", "{}", "{2*N", "{N/0}", "{5}"]
        {
            let size = Size::of(&Dim::Symbol(name.into())).unwrap();
            assert_eq!(size, s(name), "{name}");
            assert_eq!(size.dim(), Dim::Symbol(name.into()));
        }
        let odd = s("batch-size").times(2).unwrap();
        assert_eq!(odd.dim(), Dim::Symbol("{2*`batch-size`}".into()));
        assert_eq!(Size::of(&odd.dim()), Some(odd));
        assert_eq!(s("a`b").times(2).unwrap().dim(), Dim::Unknown);
    }

    #[test]
    fn expressions_stay_small() {
        let mut size = s("H");
        for i in 0..100 {
            let other = s(&format!("N{i}"));
            size = size.sub(&other).and_then(|d| d.positive()).or_else(|| other.div_floor(3)).unwrap();
        }
        assert!(size.depth() <= MAX_DEPTH && size.weight() <= MAX_WEIGHT);
    }

    #[test]
    fn overflow_is_unknown() {
        assert_eq!(Size::Known(i64::MAX).plus(1), None);
        assert_eq!(s("N").times(i64::MAX).unwrap().times(2), None);
        assert_eq!(Size::of(&Dim::Known(u64::MAX)), None);
        assert_eq!(Size::Known(-1).dim(), Dim::Unknown);
    }

    /// Random expressions: canonical forms keep their value, and what is written is read back the same.
    #[test]
    fn expressions_keep_their_value_and_can_be_read_back() {
        arbtest::arbtest(|u| {
            let mut size = || u.int_in_range(1..=9u64);
            let (h, w, n) = (size()?, size()?, size()?);
            let mut pool = vec![(s("H"), h as i64), (s("W"), w as i64), (s("N"), n as i64)];
            for _ in 0..u.int_in_range(1..=8)? {
                let (a, x) = u.choose(&pool)?.clone();
                let (b, y) = u.choose(&pool)?.clone();
                let k = u.int_in_range(1..=5i64)?;
                let c = u.int_in_range(-6..=6i64)?;
                let next = match u.int_in_range(0..=8)? {
                    0 => (a.add(&b), x + y),
                    1 => (a.sub(&b), x - y),
                    2 => (a.mul(&b), x.saturating_mul(y)),
                    3 => (a.div_floor(k), x.div_euclid(k)),
                    4 => (a.div_ceil(k), (x + k - 1).div_euclid(k)),
                    5 => (a.maximum(&b), x.max(y)),
                    6 => (a.minimum(&b), x.min(y)),
                    7 => (a.times(c), x * c),
                    _ => (a.plus(c), x + c),
                };
                if let (Some(size), value) = next
                    && value.abs() < 1_000_000
                {
                    pool.push((size, value));
                }
            }
            for (size, value) in &pool {
                assert_eq!(at(size, h, w, n), *value, "{size} at H={h} W={w} N={n}");
                assert!(!size.is_nonnegative() || *value >= 0, "{size} at H={h} W={w} N={n}");
                let dim = size.dim();
                if dim != Dim::Unknown && size.known().is_none() {
                    assert_eq!(Size::of(&dim).as_ref(), Some(size), "{dim}");
                }
            }
            Ok(())
        });
    }
}
