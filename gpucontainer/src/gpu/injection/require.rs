//! What an image requires of GPU and driver: the variables `NVIDIA_REQUIRE_*`.
//!
//! ```text
//! requirement = term { " " term }        one of the terms must hold
//! term        = factor { "," factor }    all of its factors must hold
//! factor      = property operator value  cuda, driver, arch: = != < <= > >=; brand: = !=
//! ```
//!
//! Every variable must hold for every granted GPU. What a host does not say counts as fulfilled.

use crate::error::{Error, ErrorKind, Result};

use std::cmp::Ordering;
use std::fmt;

/// A longer requirement than any image has; NVIDIA's own are below 2,000 bytes.
const MAX_LENGTH: usize = 64 << 10;

/// What can be required of one GPU and its driver.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// The GPU in words; empty if none is granted.
    pub(crate) gpu: String,
    /// The newest CUDA that the driver can serve.
    pub(crate) cuda: Option<String>,
    pub(crate) driver: Option<String>,
    /// The compute capability.
    pub(crate) arch: Option<String>,
    pub(crate) brand: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Property {
    Cuda,
    Driver,
    Arch,
    Brand,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Longer operators first: `<` is the beginning of `<=`.
const OPERATORS: &[(&str, Operator)] = &[
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
    ("!", Operator::NotEqual),
];

#[derive(Clone, Debug, Eq, PartialEq)]
struct Factor<'a> {
    text: &'a str,
    property: Property,
    operator: Operator,
    value: &'a str,
}

type Term<'a> = Vec<Factor<'a>>;

/// Checks all requirements in the environment of an image against every offer.
///
/// # Errors
/// `GpuUnavailable` naming the variable, the GPU, the factors that fail and what would satisfy them;
/// `InvalidArgument` for a requirement that is not understood.
pub(crate) fn check(environment: &[(String, String)], offers: &[Offer]) -> Result<()> {
    let variable =
        |wanted: &str| environment.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    if matches!(variable("NVIDIA_DISABLE_REQUIRE"), Some("1" | "t" | "T" | "true" | "TRUE" | "True")) {
        return Ok(());
    }
    for (place, (name, value)) in environment.iter().enumerate() {
        // The caller's word comes after the image's, and counts in its place.
        let overruled = environment[place + 1..].iter().any(|(later, _)| later == name);
        // Of JetPack, the system of NVIDIA's small boards, a driver knows nothing.
        if name.starts_with("NVIDIA_REQUIRE_") && !name.starts_with("NVIDIA_REQUIRE_JETPACK") && !overruled {
            check_one(name, value, offers)?;
        }
    }
    if let (Some(version), None) = (variable("CUDA_VERSION"), variable("NVIDIA_REQUIRE_CUDA")) {
        // An image of the time before requirements.
        let parts: Vec<&str> = version.split('.').take(2).collect();
        if is_version(&parts.join(".")) {
            check_one("CUDA_VERSION", &format!("cuda>={}", parts.join(".")), offers)?;
        }
    }
    Ok(())
}

fn check_one(name: &str, text: &str, offers: &[Offer]) -> Result<()> {
    let terms = parse(text).map_err(|why| {
        Error::new(ErrorKind::InvalidArgument, format!("the image's requirement {name}={text:?} is not valid: {why}"))
    })?;
    for offer in offers {
        let failing: Vec<Vec<&Factor<'_>>> =
            terms.iter().map(|term| term.iter().filter(|factor| !factor.holds(offer)).collect()).collect();
        if terms.is_empty() || failing.iter().any(Vec::is_empty) {
            continue;
        }
        let gpu = if offer.gpu.is_empty() { "the driver" } else { &offer.gpu };
        return Err(Error::new(
            ErrorKind::GpuUnavailable,
            format!(
                "{gpu} does not satisfy the image's requirement {name}: it would with {}; \
                 NVIDIA_DISABLE_REQUIRE=1 leaves it to the image's programs",
                remedies(&failing, offer)
            ),
        ));
    }
    Ok(())
}

/// What would have to be otherwise: another driver if that is enough, another GPU if not.
fn remedies(failing: &[Vec<&Factor<'_>>], offer: &Offer) -> String {
    const SHOWN: usize = 4;
    let in_reach = |factors: &&Vec<&Factor<'_>>| {
        factors.iter().all(|factor| matches!(factor.property, Property::Cuda | Property::Driver))
    };
    let mut terms: Vec<&Vec<&Factor<'_>>> = failing.iter().filter(in_reach).collect();
    if terms.is_empty() {
        terms = failing.iter().collect();
    }
    // The least to change first.
    terms.sort_by_key(|factors| factors.len());
    let words = |factors: &&Vec<&Factor<'_>>| {
        let each = |factor: &&Factor<'_>| format!("{} (it is {})", factor.text, factor.own(offer).unwrap_or("unknown"));
        factors.iter().map(each).collect::<Vec<_>>().join(" and ")
    };
    let shown: Vec<String> = terms.iter().take(SHOWN).map(words).collect();
    let more = terms.len().saturating_sub(SHOWN);
    let rest = if more == 0 { String::new() } else { format!(", or {more} more alternatives") };
    format!("{}{rest}", shown.join(", or "))
}

fn parse(text: &str) -> Result<Vec<Term<'_>>, Fault<'_>> {
    if text.len() > MAX_LENGTH {
        return Err(Fault("it is too long", ""));
    }
    let term = |term| str::split(term, ',').map(factor).collect::<Result<Term<'_>, _>>();
    text.split_ascii_whitespace().map(term).collect()
}

/// What is wrong, and where.
#[derive(Debug)]
struct Fault<'a>(&'static str, &'a str);

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1.is_empty() { f.write_str(self.0) } else { write!(f, "{} in {:?}", self.0, self.1) }
    }
}

fn factor(text: &str) -> Result<Factor<'_>, Fault<'_>> {
    let fault = |why| Fault(why, text);
    let end = text.find(|c: char| !c.is_ascii_alphabetic()).ok_or_else(|| fault("there is no operator"))?;
    let (property, rest) = text.split_at(end);
    let property =
        [("cuda", Property::Cuda), ("driver", Property::Driver), ("arch", Property::Arch), ("brand", Property::Brand)]
            .iter()
            .find(|(name, _)| property.eq_ignore_ascii_case(name))
            .map(|(_, property)| *property)
            .ok_or_else(|| fault("the property is none of cuda, driver, arch and brand"))?;
    let (operator, value) = OPERATORS
        .iter()
        .find_map(|(spelt, operator)| Some((*operator, rest.strip_prefix(spelt)?)))
        .ok_or_else(|| fault("the operator is none of = != < <= > >="))?;
    if property == Property::Brand {
        if !matches!(operator, Operator::Equal | Operator::NotEqual) {
            return Err(fault("brands have no order"));
        }
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(fault("there is no brand"));
        }
    } else if !is_version(value) {
        return Err(fault("there is no version"));
    }
    Ok(Factor { text, property, operator, value })
}

fn is_version(text: &str) -> bool {
    let number = |part: &str| (1..=9).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').all(number)
}

impl Factor<'_> {
    fn own<'a>(&self, offer: &'a Offer) -> Option<&'a str> {
        match self.property {
            Property::Cuda => &offer.cuda,
            Property::Driver => &offer.driver,
            Property::Arch => &offer.arch,
            Property::Brand => &offer.brand,
        }
        .as_deref()
    }

    fn holds(&self, offer: &Offer) -> bool {
        let Some(own) = self.own(offer) else { return true };
        if self.property == Property::Brand {
            return own.eq_ignore_ascii_case(self.value) == (self.operator == Operator::Equal);
        }
        let order = compare(own, self.value);
        match self.operator {
            Operator::Equal => order.is_eq(),
            Operator::NotEqual => order.is_ne(),
            Operator::Less => order.is_lt(),
            Operator::LessOrEqual => order.is_le(),
            Operator::Greater => order.is_gt(),
            Operator::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// Part by part as numbers; a missing part is 0.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |text: &str| {
        let mut numbers: Vec<u64> = text.split('.').map(|part| part.parse().unwrap_or(0)).collect();
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        numbers
    };
    numbers(one).cmp(&numbers(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn t4() -> Offer {
        let own = |text: &str| Some(text.to_owned());
        Offer {
            gpu: "GPU 0 (NVIDIA T4)".to_owned(),
            cuda: own("12.4"),
            driver: own("550.163.01"),
            arch: own("7.5"),
            brand: own("nvidia"),
        }
    }

    fn holds(requirement: &str) -> Result<()> {
        check(&[("NVIDIA_REQUIRE_CUDA".to_owned(), requirement.to_owned())], &[t4()])
    }

    #[test]
    fn terms_hold_or_not() {
        let table = [
            ("", true),
            ("cuda>=12.4", true),
            ("cuda>=12.4.0", true),
            ("cuda>12.4", false),
            ("cuda>=12.10", false),
            ("cuda<12.10", true),
            ("cuda=12.4", true),
            ("cuda!=12.4", false),
            ("cuda!12.4", false),
            ("CUDA>=12", true),
            ("cuda>=9", true),
            ("cuda>=13.0", false),
            ("driver>=550.54", true),
            ("driver<550.163.01.0", false),
            ("driver<=550.163.01", true),
            ("driver<=550.163.1", true),
            ("arch>=7.0,arch<8", true),
            ("arch>=8.0", false),
            ("brand=NVIDIA", true),
            ("brand!=tesla", true),
            ("brand=tesla", false),
            ("cuda>=13.0 cuda>=12.0", true),
            ("cuda>=13.0 cuda>=12.9", false),
            ("cuda>=12.9 brand=nvidia,driver>=550,driver<551", true),
            ("cuda>=12.9 brand=tesla,driver>=550,driver<551 brand=nvidia,driver>=535,driver<536", false),
        ];
        for (requirement, expected) in table {
            assert_eq!(holds(requirement).is_ok(), expected, "{requirement}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for bad in [
            "cuda",
            "cuda>=",
            "cuda>=x",
            "cuda==12",
            "cuda=>12",
            "cuda >= 12",
            "vendor=nvidia",
            ">=12",
            "cuda>=12,",
            "brand>=tesla",
            "brand=",
            "cuda>=1..2",
            "cuda>=12;driver>=1",
            "cuda>=9999999999",
            "\u{1f600}",
        ] {
            let error = holds(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
            assert!(error.to_string().contains("NVIDIA_REQUIRE_CUDA="), "{error}");
        }
        assert!(holds(&"cuda>=12 ".repeat(100_000)).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn refusals_say_what_would_do() {
        let error =
            holds("cuda>=12.9 brand=tesla,driver>=535,driver<536 brand=nvidia,driver>=570,driver<571").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
        let expected = "GPU 0 (NVIDIA T4) does not satisfy the image's requirement NVIDIA_REQUIRE_CUDA: it would with \
            cuda>=12.9 (it is 12.4), or driver>=570 (it is 550.163.01); NVIDIA_DISABLE_REQUIRE=1 leaves it to the \
            image's programs";
        assert_eq!(error.to_string(), expected);
        let other = holds("arch>=9.0").unwrap_err().to_string();
        assert!(other.contains("it would with arch>=9.0 (it is 7.5);"), "{other}");
    }

    #[test]
    fn every_variable_must_hold_for_every_gpu() {
        let variables = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let two = variables(&[("NVIDIA_REQUIRE_CUDA", "cuda>=12"), ("NVIDIA_REQUIRE_GPU", "arch>=8.0")]);
        assert!(check(&two, &[t4()]).unwrap_err().to_string().contains("NVIDIA_REQUIRE_GPU"));
        let a100 = Offer { arch: Some("8.0".to_owned()), gpu: "GPU 1".to_owned(), ..t4() };
        assert!(check(&two, std::slice::from_ref(&a100)).is_ok());
        assert!(check(&two, &[a100, t4()]).unwrap_err().to_string().starts_with("GPU 0"));
        assert!(check(&two, &[Offer { arch: None, ..t4() }]).is_ok(), "what is unknown is no obstacle");
        for (value, disabled) in [("1", true), ("true", true), ("T", true), ("0", false), ("yes", false), ("", false)] {
            let with = [two.clone(), variables(&[("NVIDIA_DISABLE_REQUIRE", value)])].concat();
            assert_eq!(check(&with, &[t4()]).is_ok(), disabled, "{value:?}");
        }
        assert!(check(&variables(&[("NVIDIA_REQUIRE_JETPACK", "cuda>=99")]), &[t4()]).is_ok());
        let (newer, nothing) = (("NVIDIA_REQUIRE_CUDA", "cuda>=99"), ("NVIDIA_REQUIRE_CUDA", ""));
        assert!(check(&variables(&[newer, nothing]), &[t4()]).is_ok(), "the caller's word over the image's");
        assert!(check(&variables(&[nothing, newer]), &[t4()]).is_err());
        assert!(check(&variables(&[("CUDA_VERSION", "13.0.88")]), &[t4()]).is_err(), "an image of old");
        assert!(check(&variables(&[("CUDA_VERSION", "12.4.1")]), &[t4()]).is_ok());
        assert!(check(&variables(&[("CUDA_VERSION", "13.0"), ("NVIDIA_REQUIRE_CUDA", "cuda>=12")]), &[t4()]).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            let _ = holds(&text);
        }

        #[test]
        fn versions_have_an_order(a in 0_u32..30, b in 0_u32..30, c in 0_u32..30, d in 0_u32..30) {
            prop_assert_eq!(compare(&format!("{a}.{b}"), &format!("{c}.{d}")), (a, b).cmp(&(c, d)));
        }
    }
}
