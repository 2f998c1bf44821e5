//! The new layer's tar archive, made while it is read.

use super::base::Attributes;
use super::tree::{Node, Tree};
use crate::error::{Error, ErrorKind};
use crate::progress::Cancel;
use crate::sys::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BLOCK: u64 = 512;

/// What the name field of a header holds; more goes into an extended header.
const NAME_MAX: usize = 100;

/// What the eleven octal digits of the size field can say.
const SIZE_MAX: u64 = 1 << 33;

/// A tar archive (POSIX 2001) of a tree, as a stream. The same tree gives the same bytes.
pub(super) struct Archive<'a> {
    entries: Box<dyn Iterator<Item = (&'a Path, &'a Node)> + 'a>,
    seconds: u64,
    cancel: &'a Cancel,
    /// Headers, small contents and padding, from `done` on.
    pending: Vec<u8>,
    done: usize,
    content: Option<Content>,
    ended: bool,
}

/// Where the rest of the present entry comes from.
enum Content {
    Bytes(Arc<[u8]>, usize),
    Host { path: PathBuf, file: File, left: u64, size: u64 },
}

impl<'a> Archive<'a> {
    pub(super) fn new(tree: &'a Tree, seconds: u64, cancel: &'a Cancel) -> Self {
        Self {
            entries: Box::new(tree.entries()),
            seconds,
            cancel,
            pending: Vec::new(),
            done: 0,
            content: None,
            ended: false,
        }
    }

    /// Puts the next entry's headers into `pending`, or the archive's end.
    fn advance(&mut self) -> io::Result<()> {
        self.cancel.check()?;
        self.pending.clear();
        self.done = 0;
        let Some((path, node)) = self.entries.next() else {
            self.pending.resize(if self.ended { 0 } else { 1024 }, 0);
            self.ended = true;
            return Ok(());
        };
        let mut name = path.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or_default().to_vec();
        if name.is_empty() {
            name.push(b'.');
        }
        let root = Attributes { mode: 0o777, user: 0, group: 0 };
        let (kind, size, link, attributes) = match node {
            Node::Directory(attributes) => {
                name.push(b'/');
                (b'5', 0, &b""[..], *attributes)
            }
            Node::Link(target) => (b'2', 0, target.as_os_str().as_bytes(), root),
            Node::Bytes { bytes, mode } => {
                self.content = Some(Content::Bytes(bytes.clone(), 0));
                let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                (b'0', size, &b""[..], Attributes { mode: *mode, ..root })
            }
            Node::Host { path, size, mode } => {
                let file = fs::open(path)?;
                self.content = Some(Content::Host { path: path.clone(), file, left: *size, size: *size });
                (b'0', *size, &b""[..], Attributes { mode: *mode, ..root })
            }
        };
        let mut records = Vec::new();
        if name.len() > NAME_MAX {
            record(&mut records, "path", &name);
        }
        if link.len() > NAME_MAX {
            record(&mut records, "linkpath", link);
        }
        if size >= SIZE_MAX {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        if !records.is_empty() {
            let length = u64::try_from(records.len()).unwrap_or(u64::MAX);
            self.pending.extend(header(b'x', b"././@PaxHeader", b"", length, root, self.seconds).as_bytes());
            self.pending.extend(records);
            self.pending.resize(self.pending.len().next_multiple_of(512), 0);
        }
        let size = if size >= SIZE_MAX { 0 } else { size };
        self.pending.extend(header(kind, &name, link, size, attributes, self.seconds).as_bytes());
        Ok(())
    }
}

fn header(kind: u8, name: &[u8], link: &[u8], size: u64, attributes: Attributes, seconds: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(attributes.mode);
    header.set_uid(attributes.user.into());
    header.set_gid(attributes.group.into());
    header.set_mtime(seconds);
    header.set_size(size);
    let old = header.as_old_mut();
    let short = |field: &mut [u8; NAME_MAX], bytes: &[u8]| {
        let length = bytes.len().min(NAME_MAX);
        field[..length].copy_from_slice(&bytes[..length]);
    };
    short(&mut old.name, name);
    short(&mut old.linkname, link);
    header.set_cksum();
    header
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits too.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend(format!("{length} {key}=").as_bytes());
    records.extend(value);
    records.push(b'\n');
}

fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or_default()
}

impl Read for Archive<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.done < self.pending.len() {
                let count = buffer.len().min(self.pending.len() - self.done);
                buffer[..count].copy_from_slice(&self.pending[self.done..self.done + count]);
                self.done += count;
                return Ok(count);
            }
            match &mut self.content {
                Some(Content::Bytes(bytes, done)) if *done < bytes.len() => {
                    let count = buffer.len().min(bytes.len() - *done);
                    buffer[..count].copy_from_slice(&bytes[*done..*done + count]);
                    *done += count;
                    return Ok(count);
                }
                Some(Content::Host { path, file, left, .. }) if *left > 0 => {
                    self.cancel.check()?;
                    let wanted = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let count = file
                        .read(&mut buffer[..wanted])
                        .map_err(|e| io::Error::from(Error::from_io(format!("read({path:?})"), e).with_path(&*path)))?;
                    if count == 0 {
                        let why = format!("{path:?} became shorter while it was copied");
                        return Err(Error::new(ErrorKind::InvalidArgument, why).with_path(&*path).into());
                    }
                    *left -= u64::try_from(count).unwrap_or(u64::MAX);
                    return Ok(count);
                }
                Some(Content::Bytes(bytes, _)) => {
                    self.pending = vec![0; padding(u64::try_from(bytes.len()).unwrap_or_default())];
                    self.done = 0;
                    self.content = None;
                }
                Some(Content::Host { size, .. }) => {
                    self.pending = vec![0; padding(*size)];
                    self.done = 0;
                    self.content = None;
                }
                None if self.ended => return Ok(0),
                None => self.advance()?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::base::Base;
    use super::super::tree::Step;
    use super::*;

    fn archive(steps: &[Step]) -> Vec<u8> {
        let tree = Tree::make(steps, &Base::open(&[]).unwrap()).unwrap();
        let mut bytes = Vec::new();
        Archive::new(&tree, 1000, &Cancel::new()).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn another_reader_finds_everything_in_it() {
        let long = format!("/{}/{}", "d".repeat(120), "f".repeat(120));
        let target = "t".repeat(150);
        let steps = [
            Step::File { path: PathBuf::from(&long), bytes: b"long".as_slice().into(), mode: 0o600 },
            Step::Link { target: PathBuf::from(&target), path: PathBuf::from("/link") },
            Step::File { path: PathBuf::from("/empty"), bytes: b"".as_slice().into(), mode: 0o4755 },
            Step::File { path: PathBuf::from("/block"), bytes: vec![7; 512].into(), mode: 0o644 },
            Step::Directory { path: PathBuf::from("/tmp"), mode: 0o1777 },
        ];
        let bytes = archive(&steps);
        assert_eq!(bytes.len() % 512, 0);
        let mut found = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 1000);
            found.push((
                entry.path().unwrap().to_string_lossy().into_owned(),
                entry.header().mode().unwrap(),
                entry.link_name().unwrap().map(|l| l.to_string_lossy().into_owned()),
                content.len(),
            ));
        }
        let directory = format!("{}/", "d".repeat(120));
        let expected = [
            ("./".to_owned(), 0o755, None, 0),
            ("block".to_owned(), 0o644, None, 512),
            (directory, 0o755, None, 0),
            (long[1..].to_owned(), 0o600, None, 4),
            ("empty".to_owned(), 0o4755, None, 0),
            ("link".to_owned(), 0o777, Some(target), 0),
            ("tmp/".to_owned(), 0o1777, None, 0),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn record_lengths_count_themselves() {
        for length in [1, 80, 86, 87, 88, 89, 90, 900, 985, 986, 987, 990, 991] {
            let mut bytes = Vec::new();
            record(&mut bytes, "path", &vec![b'x'; length]);
            let text = String::from_utf8(bytes.clone()).unwrap();
            let (stated, _) = text.split_once(' ').unwrap();
            assert_eq!(stated.parse::<usize>().unwrap(), bytes.len());
        }
    }
}
