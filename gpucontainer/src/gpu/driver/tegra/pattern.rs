//! The patterns of lists: `*`, `?`, `[a-c]`, `[^a-c]` and `\` before a character that stands for itself.
//!
//! As in a shell, each is for one part of a path; unlike there, `*` matches names that begin with a dot too.

/// One thing that a pattern matches.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Token {
    Literal(char),
    Any,
    Many,
    Class { not: bool, ranges: Vec<(char, char)> },
}

/// A pattern for one part of a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    /// Reads a pattern, or says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let mut tokens = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(character) = rest.next() {
            tokens.push(match character {
                '*' if tokens.last() == Some(&Token::Many) => continue,
                '*' => Token::Many,
                '?' => Token::Any,
                '\\' => Token::Literal(rest.next().ok_or("it ends in a backslash")?),
                '[' => {
                    let not = rest.next_if(|next| matches!(next, '^' | '!')).is_some();
                    Token::Class { not, ranges: ranges(&mut rest)? }
                }
                other => Token::Literal(other),
            });
        }
        Ok(Self { tokens })
    }

    /// The name that alone matches, if the pattern has nothing but characters that stand for themselves.
    pub(crate) fn literal(&self) -> Option<String> {
        let character = |token: &Token| if let Token::Literal(character) = token { Some(*character) } else { None };
        self.tokens.iter().map(character).collect()
    }

    /// Whether the whole of `name` matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut place) = (0, 0);
        // Behind the last star, and where in the name what it stands for ends: the only choice that is ever taken back.
        let mut star = None;
        while place < name.len() {
            match self.tokens.get(token) {
                Some(Token::Many) => {
                    token += 1;
                    star = Some((token, place));
                }
                Some(one) if one.is(name[place]) => (token, place) = (token + 1, place + 1),
                _ => match star {
                    Some((behind, end)) => {
                        (token, place) = (behind, end + 1);
                        star = Some((behind, end + 1));
                    }
                    None => return false,
                },
            }
        }
        self.tokens[token..].iter().all(|token| *token == Token::Many)
    }
}

impl Token {
    fn is(&self, character: char) -> bool {
        match self {
            Self::Literal(own) => *own == character,
            Self::Any | Self::Many => true,
            Self::Class { not, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&character)) != *not
            }
        }
    }
}

fn ranges(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Vec<(char, char)>, &'static str> {
    let open = "its [ has no ]";
    let mut ranges = Vec::new();
    let one = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>| match rest.next() {
        Some('\\') => rest.next().ok_or(open),
        Some(character) => Ok(character),
        None => Err(open),
    };
    loop {
        if rest.next_if_eq(&']').is_some() {
            return if ranges.is_empty() { Err("its [] is empty") } else { Ok(ranges) };
        }
        let first = one(rest)?;
        let last = if rest.next_if_eq(&'-').is_some() { one(rest)? } else { first };
        if first > last {
            return Err("its [] goes backwards");
        }
        ranges.push((first, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_match_or_do_not() {
        let table = [
            ("nvhost-*", "nvhost-ctrl", true),
            ("nvhost-*", "nvhost-", true),
            ("nvhost-*", "nvhos", false),
            ("*", ".hidden", true),
            ("", "", true),
            ("", "a", false),
            ("lib*.so.*", "libcuda.so.1.1", true),
            ("lib*.so.*", "libcuda.so", false),
            ("*a*b", "xaybab", true),
            ("*a*b", "xaybac", false),
            ("nvidia[0-9]", "nvidia7", true),
            ("nvidia[0-9]", "nvidiactl", false),
            ("[^a]b", "cb", true),
            ("[!a]b", "ab", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("??", "ä€", true),
            ("[\\]]", "]", true),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), expected, "{pattern} {name}");
        }
        for bad in ["[", "[a", "[a-", "[]", "[z-a]", "a\\", "[\\"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Pattern::parse("a\\*b").unwrap().literal().as_deref(), Some("a*b"));
        assert_eq!(Pattern::parse("a*b").unwrap().literal(), None);
        // A pattern that would take for ever if every choice were tried.
        let slow = Pattern::parse(&"*a".repeat(200)).unwrap();
        assert!(!slow.matches(&"a".repeat(199)) && slow.matches(&"a".repeat(4000)));
    }

    proptest! {
        #[test]
        fn any_pattern_is_read_or_refused(pattern in ".{0,24}", name in ".{0,24}") {
            if let Ok(read) = Pattern::parse(&pattern) {
                let matched = read.matches(&name);
                if let Some(literal) = read.literal() {
                    prop_assert_eq!(matched, literal == name);
                }
            }
        }

        #[test]
        fn a_name_matches_itself_with_anything_replaced(name in "[a-z.]{1,12}", cut in 0_usize..12) {
            let cut = cut.min(name.len());
            let pattern = format!("{}*{}", &name[..cut], &name[cut..]);
            prop_assert!(Pattern::parse(&pattern).unwrap().matches(&name));
        }
    }
}
