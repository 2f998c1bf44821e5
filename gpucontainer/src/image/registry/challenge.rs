//! `WWW-Authenticate` headers: what a registry wants to see.

/// One challenge of a header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Whether it is of this scheme, given in lower case.
    pub(super) fn is(&self, scheme: &str) -> bool {
        self.scheme == scheme
    }

    /// The value of a parameter, its name given in lower case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a header's value: schemes, each with parameters, all separated by commas. What cannot be read
/// ends the list.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (token, after) = rest.split_at(end);
        if token.is_empty() {
            return challenges;
        }
        let after = after.trim_start_matches([' ', '\t']);
        let Some(value) = after.strip_prefix('=') else {
            challenges.push(Challenge { scheme: token.to_ascii_lowercase(), parameters: Vec::new() });
            rest = after;
            continue;
        };
        let Some((value, after)) = read_value(value.trim_start_matches([' ', '\t'])) else { return challenges };
        if let Some(challenge) = challenges.last_mut() {
            challenge.parameters.push((token.to_ascii_lowercase(), value));
        }
        rest = after;
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn read_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !is_token(c) && !"/:@?=".contains(c)).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_of_real_registries_are_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/python:pull,push""#;
        let challenges = parse(header);
        assert_eq!(challenges.len(), 1);
        assert!(challenges[0].is("bearer"));
        assert_eq!(challenges[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenges[0].get("scope"), Some("repository:library/python:pull,push"));

        let both = parse(r#"Basic realm="a \"b\"", charset=UTF-8 , BEARER Realm = "x",service=y"#);
        assert_eq!(both.len(), 2);
        assert_eq!((both[0].get("realm"), both[0].get("charset")), (Some("a \"b\""), Some("UTF-8")));
        assert!(both[1].is("bearer"));
        assert_eq!((both[1].get("realm"), both[1].get("service")), (Some("x"), Some("y")));
        assert_eq!(parse("Negotiate").len(), 1);
        assert!(parse("").is_empty());
        assert_eq!(parse(r#"Basic realm="open"#)[0].get("realm"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_fail(header in "\\PC{0,60}|(Bearer|,|=|\"|\\\\| |x){0,20}") {
            parse(&header);
        }
    }
}
