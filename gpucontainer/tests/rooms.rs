//! Holds the shape of the source: which room may use which, and who may talk to the kernel.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use std::path::{Path, PathBuf};

/// From the ground up. A room uses only rooms of earlier lines; those on one line do not know each other.
const ROOMS: &[&[&str]] = &[
    &["error"],
    &["digest", "events"],
    &["sys"],
    &["claim"],
    &["progress"],
    &["store"],
    &["layer"],
    &["image", "rootfs", "cgroup", "seccomp", "gpu", "net"],
    &["sandbox"],
    &["host"],
    &["lib"],
];

/// Uses against the order that are meant: an error asks what an error number is called.
const EXCEPTIONS: &[(&str, &str)] = &[("error", "sys::errno::")];

/// The only rooms that make system calls: the door, and the program that becomes a container's first process.
const KERNEL_ROOMS: &[&str] = &["sys", "stub"];
const KERNEL_CRATES: &[&str] = &["libc", "nix", "rustix"];

/// What of `std::fs` is a type and opens nothing by a path.
const FILE_TYPES: &[&str] = &["File", "FileType", "Metadata", "Permissions"];

#[test]
fn every_file_keeps_to_its_room() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&source, &mut files);
    assert!(files.len() > 10, "the source was not found in {source:?}");
    let mut faults = Vec::new();
    for file in files {
        let place = file.strip_prefix(&source).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        faults.extend(examine(place, &text).into_iter().map(|fault| format!("{}: {fault}", place.display())));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn each_fault_is_found() {
    let cases: &[(&str, &str, &str)] = &[
        ("store/mod.rs", "use crate::sandbox::Sandbox;", "uses sandbox, which is not below store"),
        ("gpu/mod.rs", "fn f() { crate::net::open() }", "uses net, which is not below gpu"),
        ("claim.rs", "use crate::store as s;", "uses store"),
        ("net/mod.rs", "use crate::{error, sys};", "crate::{"),
        ("net/mod.rs", "use crate::Error;", "names no room"),
        ("net/port.rs", "use super::super::gpu::Grant;", "super::super"),
        ("net/mod.rs", "let x = libc::EIO;", "libc"),
        ("net/mod.rs", "use rustix;", "rustix"),
        ("net/mod.rs", "#![allow(unsafe_code)]", "unsafe"),
        ("sys/mount.rs", "std::fs::read(path)", "std::fs::read"),
        ("image/mod.rs", "use std::fs;", "std::fs"),
        ("image/mod.rs", "use std::fs::{File, read};", "std::fs::read"),
        ("image/mod.rs", "File::open(path)", "File::open"),
        ("kitchen/mod.rs", "", "no room is called kitchen"),
    ];
    for (place, text, expected) in cases {
        let faults = examine(Path::new(place), text).join("\n");
        assert!(faults.contains(expected), "{place}: {text:?} gave {faults:?}");
    }
}

#[test]
fn what_is_allowed_is_not_called_a_fault() {
    let cases: &[(&str, &str)] = &[
        ("sandbox/mod.rs", "use crate::gpu::Grant; pub(crate) fn f() {}"),
        (
            "gpu/mod.rs",
            "// crate::net is elsewhere\nlet s = \"libc::EIO\"; /* nix::x */ let c = '\"'; use std::fs::File;",
        ),
        ("net/mod.rs", "#[cfg(test)]\nmod tests { fn f() { std::fs::read(\"}\"); libc::f(); } }"),
        ("net/mod.rs", "let raw = r#\"crate::sandbox \"inner\" \"#; fn f<'a>(x: &'a str) {}"),
        ("sys/fs.rs", "std::fs::read(path)"),
        ("sys/mod.rs", "use rustix::fs::Mode;"),
        ("error.rs", "crate::sys::errno::kind(2)"),
        ("net/tests.rs", "use crate::sandbox::Sandbox;"),
    ];
    for (place, text) in cases {
        let faults = examine(Path::new(place), text);
        assert!(faults.is_empty(), "{place}: {text:?} gave {faults:?}");
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn examine(place: &Path, text: &str) -> Vec<String> {
    let mut modules: Vec<String> =
        place.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if modules.len() > 1 && modules.last().is_some_and(|name| name == "mod") {
        modules.pop();
    }
    // Modules of tests see what they like.
    if modules.iter().any(|name| name == "tests") {
        return Vec::new();
    }
    let room = modules[0].as_str();
    let code = without_tests(&without_words(text));
    let mut faults = Vec::new();
    if !KERNEL_ROOMS.contains(&room) {
        kernel(&code, &mut faults);
    }
    if modules != ["sys", "fs"] {
        files(&code, room, &mut faults);
    }
    if room == "lib" || room == "stub" {
        return faults;
    }
    let Some(level) = level(room) else {
        faults.push(format!("no room is called {room}"));
        return faults;
    };
    for rest in after(&code, "crate") {
        let Some(path) = rest.strip_prefix("::") else { continue };
        if path.starts_with('{') {
            faults
                .push("a group after crate:: hides what is used: write crate::{ … } as one line for each room".into());
            continue;
        }
        let name = identifier(path);
        if name == room || EXCEPTIONS.iter().any(|(who, what)| *who == room && path.starts_with(what)) {
            continue;
        }
        match self::level(name) {
            None => faults.push(format!("crate::{name} names no room: write the path through the room")),
            Some(other) if other >= level => faults.push(format!("uses {name}, which is not below {room}")),
            Some(_) => {}
        }
    }
    let up = "super::".repeat(modules.len());
    if code.contains(&up) {
        faults.push(format!("{up} leaves the room: write crate::"));
    }
    faults
}

fn level(room: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&room))
}

fn kernel(code: &str, faults: &mut Vec<String>) {
    for name in KERNEL_CRATES {
        for rest in after(code, name) {
            if rest.starts_with("::") || rest.starts_with(';') {
                faults.push(format!("{name} is used outside of sys"));
            }
        }
    }
    if code.contains("unsafe") {
        faults.push("unsafe outside of sys".into());
    }
}

fn files(code: &str, room: &str, faults: &mut Vec<String>) {
    for rest in after(code, "std") {
        let Some(rest) = rest.strip_prefix("::fs") else { continue };
        let names: Vec<&str> = match rest.strip_prefix("::") {
            Some(group) if group.starts_with('{') => {
                group[1..].split('}').next().unwrap_or("").split(',').map(str::trim).collect()
            }
            Some(path) => vec![identifier(path)],
            None => vec!["self"],
        };
        let opening = names.into_iter().filter(|name| !name.is_empty() && !FILE_TYPES.contains(&identifier(name)));
        faults.extend(opening.map(|name| format!("std::fs::{name} outside of sys::fs")));
    }
    if !KERNEL_ROOMS.contains(&room) {
        for call in ["File::open", "File::create", "File::options", "OpenOptions::new"] {
            if code.contains(call) {
                faults.push(format!("{call} outside of sys::fs"));
            }
        }
    }
}

/// What follows each use of `word` as a path's first part.
fn after<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(word).filter_map(move |(at, _)| {
        let before = code[..at].chars().next_back();
        let joined = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        let rest = &code[at + word.len()..];
        let longer = rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        (!joined && !longer).then_some(rest)
    })
}

fn identifier(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("")
}

/// The code without its comments and without what its literals hold.
fn without_words(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if rest.starts_with('"') {
            quoted(rest, b'"')
        } else if rest.starts_with('\'') && (rest[1..].starts_with('\\') || rest[1..].chars().nth(1) == Some('\'')) {
            quoted(rest, b'\'')
        } else {
            let next = rest.chars().next().unwrap();
            code.push(next);
            at += next.len_utf8();
            continue;
        };
        // Something must stay in its place, or two names would become one.
        code.push(' ');
        at += skipped;
    }
    code
}

fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.strip_prefix('r')?.bytes().take_while(|byte| *byte == b'#').count();
    let start = 1 + hashes;
    text[start..].starts_with('"').then_some(())?;
    let end = format!("\"{}", "#".repeat(hashes));
    text[start + 1..].find(&end).map(|at| start + 1 + at + end.len())
}

fn quoted(text: &str, quote: u8) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The code without items that exist in tests alone.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, item)) = rest.split_once("#[cfg(test)]") {
        kept.push_str(before);
        let mut depth = 0_usize;
        let mut end = item.len();
        for (at, character) in item.char_indices() {
            match character {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && (character == ';' || character == '}') {
                end = at + 1;
                break;
            }
        }
        rest = &item[end..];
    }
    kept.push_str(rest);
    kept
}
