//! The lists of what a container needs for a GPU in the processor.
//!
//! ```text
//! file = { line }
//! line = kind "," path        spaces around both are ignored; empty lines and those that begin with # too
//! kind = "dev" | "dir" | "lib" | "sym"
//! path = absolute, without "..", with patterns in its parts
//! ```

use super::pattern::Pattern;

/// What a line lists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Device,
    Directory,
    Library,
    Link,
}

/// A line of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Line {
    pub(crate) kind: Kind,
    /// The parts of the path, each a pattern.
    pub(crate) parts: Vec<Pattern>,
}

/// Reads a list, or says which line, counted from 1, is wrong and why.
pub(crate) fn parse(text: &str) -> Result<Vec<Line>, (usize, String)> {
    let lines = text.lines().map(str::trim).zip(1..).filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(line, number)| parse_line(line).map_err(|why| (number, format!("{line:?}: {why}")))).collect()
}

fn parse_line(line: &str) -> Result<Line, String> {
    let (kind, path) = line.split_once(',').ok_or("it is not KIND, PATH")?;
    let (kind, path) = (kind.trim(), path.trim());
    let kind = match kind {
        "dev" => Kind::Device,
        "dir" => Kind::Directory,
        "lib" => Kind::Library,
        "sym" => Kind::Link,
        other => return Err(format!("its kind {other:?} is none of dev, dir, lib and sym")),
    };
    if !path.starts_with('/') || path.contains('\0') {
        return Err("its path is not absolute".to_owned());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err("its path is the root, or has \"..\"".to_owned());
    }
    let parts = parts.into_iter().map(Pattern::parse).collect::<Result<_, _>>()?;
    Ok(Line { kind, parts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read() {
        let text = "# of the board\n\ndev, /dev/nvhost-ctrl\n dir ,/lib/firmware/tegra194\nlib,/a/b,with,commas\r\n\
                    sym, /usr/lib/libx.so\n";
        let read = parse(text).unwrap();
        let kinds: Vec<Kind> = read.iter().map(|line| line.kind).collect();
        assert_eq!(kinds, [Kind::Device, Kind::Directory, Kind::Library, Kind::Link]);
        let path = |line: &Line| line.parts.iter().filter_map(Pattern::literal).collect::<Vec<_>>().join("/");
        assert_eq!(path(&read[0]), "dev/nvhost-ctrl");
        assert_eq!(path(&read[2]), "a/b,with,commas");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        let table = [
            ("dev", "not KIND, PATH"),
            (",", "its kind \"\""),
            ("dev,", "not absolute"),
            ("dev, dev/x", "not absolute"),
            ("file, /x", "its kind \"file\""),
            ("DEV, /x", "its kind \"DEV\""),
            ("lib, /", "is the root"),
            ("lib, /a/../../etc/shadow", "\"..\""),
            ("lib, /a/[b", "has no ]"),
            ("lib, /a\0b", "not absolute"),
        ];
        for (line, words) in table {
            let (number, why) = parse(&format!("dev, /dev/ok\n\n{line}\ndev, /dev/ok\n")).unwrap_err();
            assert_eq!(number, 3, "{line:?}");
            assert!(why.contains(words), "{line:?}: {why}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_looks_like_a_list_is_read_or_refused(
            lines in prop::collection::vec("(dev|dir|lib|sym|x)?[ ,]{0,2}(/[a-z*?\\[\\]^.\\\\-]{0,6}){0,4}", 0..8)
        ) {
            match parse(&lines.join("\n")) {
                Ok(read) => for line in read {
                    prop_assert!(!line.parts.is_empty());
                    prop_assert!(line.parts.iter().all(|part| part.literal().is_none_or(|name| name != "..")));
                },
                Err((number, why)) => prop_assert!(number >= 1 && number <= lines.len() && !why.is_empty()),
            }
        }
    }
}
