//! Which devices a group may use: rules, and what they come to on each version.
//!
//! Version 1 has a controller that takes the rules as lines. Version 2 has none: there a program of the
//! kernel's own machine decides, which is made from the rules here and attached to the group.

use super::Cgroup;
use super::layout::Version;
use super::leaf::Leaf;
use super::lines::Changes;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::bpf::{self, Instruction};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

/// The kind of a device.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// One permission on devices: what is not allowed by a rule is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DeviceRule {
    kind: Option<DeviceKind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

// As the kernel has them in `linux/bpf.h`.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;
/// The kernel's device numbers have 12 bits for the major and 20 for the minor.
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

impl DeviceRule {
    /// Allows opening for reading and writing, and making nodes, of the device with these numbers.
    pub const fn device(kind: DeviceKind, major: u32, minor: u32) -> Self {
        Self { kind: Some(kind), major: Some(major), minor: Some(minor), access: ALL }
    }

    /// Allows all of that for every minor number of a major one, for example a driver's.
    pub const fn driver(kind: DeviceKind, major: u32) -> Self {
        Self { kind: Some(kind), major: Some(major), minor: None, access: ALL }
    }

    /// Allows all of that for every device of a kind.
    pub const fn kind(kind: DeviceKind) -> Self {
        Self { kind: Some(kind), major: None, minor: None, access: ALL }
    }

    /// Allows everything with every device.
    pub const fn everything() -> Self {
        Self { kind: None, major: None, minor: None, access: ALL }
    }

    /// Narrows the rule to these kinds of access.
    #[must_use]
    pub const fn only(mut self, read: bool, write: bool, mknod: bool) -> Self {
        self.access = if read { READ } else { 0 } | if write { WRITE } else { 0 } | if mknod { MKNOD } else { 0 };
        self
    }

    /// The devices that the OCI runtime specification gives every container (`null`, `zero`, `full`,
    /// `random`, `urandom`, `tty`, `console`, `ptmx` and pseudo-terminals), and making nodes of any
    /// device, which by itself gives no access to it.
    ///
    /// # References
    /// "Default Devices" in <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>
    pub fn defaults() -> Vec<Self> {
        use DeviceKind::{Block, Character};
        let mut rules =
            vec![Self::kind(Character).only(false, false, true), Self::kind(Block).only(false, false, true)];
        let nodes = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
        rules.extend(nodes.map(|(major, minor)| Self::device(Character, major, minor)));
        rules.push(Self::driver(Character, 136));
        rules
    }

    fn check(&self) -> Result<()> {
        let why = match self {
            _ if self.access == 0 => "it allows no kind of access",
            Self { major: Some(major), .. } if *major > MAJOR_MAX => "no major number is above 4095",
            Self { minor: Some(minor), .. } if *minor > MINOR_MAX => "no minor number is above 1048575",
            Self { major: None, minor: Some(_), .. } => "a minor number without a major one",
            Self { kind: None, major: Some(_), .. } => "numbers without a kind of device",
            _ => return Ok(()),
        };
        Err(Error::new(ErrorKind::InvalidArgument, format!("device rule \"{self}\": {why}")))
    }
}

impl DeviceRule {
    /// The rule of a line as version 1 has it; `None` for anything else.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (kind, numbers, letters) = (words.next()?, words.next()?, words.next()?);
        let kind = match kind {
            "a" => None,
            "c" => Some(DeviceKind::Character),
            "b" => Some(DeviceKind::Block),
            _ => return None,
        };
        let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
        let (major, minor) = numbers.split_once(':')?;
        let mut access = 0;
        for letter in letters.chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return None,
            };
        }
        Some(Self { kind, major: number(major)?, minor: number(minor)?, access })
    }
}

/// As version 1 has it: `c 1:3 rwm`, `a *:* rwm`.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            None => 'a',
            Some(DeviceKind::Character) => 'c',
            Some(DeviceKind::Block) => 'b',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (bit, letter) in [(READ, "r"), (WRITE, "w"), (MKNOD, "m")] {
            if self.access & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl Cgroup {
    /// Lets processes inside use the devices that `rules` allow and no others, in place of what was allowed before.
    ///
    /// Best called before the first process enters; on version 1 those that run are moved into one more
    /// hierarchy then. Rules of groups above hold as well. A device that is open stays open, and whoever runs keeps the
    /// use of what was allowed and stays so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a rule that names no device. [`ErrorKind::Unsupported`] or
    /// [`ErrorKind::PermissionDenied`] if the host or the caller's rights do not allow it: in particular
    /// without root, where a user namespace keeps devices away already, and on version 1 if a group above does not
    /// allow a device. What was allowed before is allowed then, or the error says what could not be set back.
    pub fn allow_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        let wanted = || format!("set device rules of control group {:?}", self.name());
        rules.iter().try_for_each(DeviceRule::check)?;
        let rules = merged(rules);
        let late = if self.layout.find("devices").is_some() { "devices" } else { "" };
        let leaf = self.make_late(late).map_err(|e| e.with_kind(ErrorKind::Unsupported)).with_context(wanted)?;
        match leaf.version {
            Version::V1 => {
                let changes = Changes::make(&leaf, &rules).with_context(wanted)?;
                self.move_into(&leaf).or_else(|error| changes.undo(&leaf, error)).with_context(wanted)
            }
            Version::V2 => {
                let before = self.allow_by_program(&leaf, &rules).with_context(wanted)?;
                let moved = self.move_into(&leaf);
                moved.or_else(|error| self.allow_again(&leaf, before, error)).with_context(wanted)
            }
        }
    }

    /// Has the kernel ask another program; the one that it asked before.
    fn allow_by_program(&self, leaf: &Leaf, rules: &[DeviceRule]) -> Result<Option<OwnedFd>> {
        self.attach_program(leaf, bpf::load_device_program(&program(rules))?)
    }

    fn attach_program(&self, leaf: &Leaf, program: OwnedFd) -> Result<Option<OwnedFd>> {
        let mut attached = self.devices.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        bpf::attach_device_program(leaf.entry.as_fd(), &program, attached.as_ref())?;
        Ok(attached.replace(program))
    }

    /// Allows what the program `before` allows, or everything if there was none; `error` is why.
    fn allow_again(&self, leaf: &Leaf, before: Option<OwnedFd>, error: Error) -> Result<()> {
        let program = before.map_or_else(|| bpf::load_device_program(&program(&[DeviceRule::everything()])), Ok);
        match program.and_then(|program| self.attach_program(leaf, program)) {
            Ok(_) => Err(error),
            Err(other) => Err(error.context(format!("the device rules could not be set back: {other}"))),
        }
    }
}

/// One rule for each device: what two rules allow together, a process may ask for at once.
fn merged(rules: &[DeviceRule]) -> Vec<DeviceRule> {
    let mut all: Vec<DeviceRule> = Vec::with_capacity(rules.len());
    for rule in rules {
        let same =
            |other: &&mut DeviceRule| (other.kind, other.major, other.minor) == (rule.kind, rule.major, rule.minor);
        match all.iter_mut().find(same) {
            Some(other) => other.access |= rule.access,
            None => all.push(*rule),
        }
    }
    all
}

// Operations of the machine, as named in the kernel's `instruction-set.rst`.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

// Which register holds what.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// The program that answers 1 for what the rules allow and 0 for all else.
///
/// The kernel hands it three words: the access in the upper and the kind in the lower half of the first,
/// the major and the minor number.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let plain = |code, register, immediate| Instruction { code, registers: register, offset: 0, immediate };
    let load =
        |register, offset| Instruction { code: LOAD_WORD, registers: CONTEXT << 4 | register, offset, immediate: 0 };
    let copy = |to, from: u8| Instruction { code: MOVE_REGISTER, registers: from << 4 | to, offset: 0, immediate: 0 };
    let mut code = vec![
        load(ACCESS, 0),
        copy(KIND, ACCESS),
        plain(AND, KIND, 0xffff),
        plain(SHIFT_RIGHT, ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules {
        let mut block = Vec::new();
        if let Some(kind) = rule.kind {
            let number = if kind == DeviceKind::Block { 1 } else { 2 };
            block.push(plain(JUMP_IF_NOT, KIND, number));
        }
        if rule.access != ALL {
            block.push(copy(SCRATCH, ACCESS));
            block.push(plain(AND, SCRATCH, i32::from(!rule.access & ALL)));
            block.push(plain(JUMP_IF_NOT, SCRATCH, 0));
        }
        // Numbers were checked to have at most 20 bits.
        let numbers = [(MAJOR, rule.major), (MINOR, rule.minor)];
        for (register, number) in numbers {
            if let Some(number) = number.and_then(|number| i32::try_from(number).ok()) {
                block.push(plain(JUMP_IF_NOT, register, number));
            }
        }
        let matches_all = block.is_empty();
        block.push(plain(MOVE, RESULT, 1));
        block.push(plain(EXIT, 0, 0));
        // A jump counts from the instruction after it, to the first one after the block.
        let length = block.len();
        for (at, instruction) in block.iter_mut().enumerate().filter(|(_, one)| one.code == JUMP_IF_NOT) {
            instruction.offset = i16::try_from(length - at - 1).unwrap_or_default();
        }
        code.append(&mut block);
        if matches_all {
            // The kernel refuses programs with instructions that cannot be reached.
            return code;
        }
    }
    code.extend([plain(MOVE, RESULT, 0), plain(EXIT, 0, 0)]);
    code
}

#[cfg(test)]
mod tests {
    use super::DeviceKind::{Block, Character};
    use super::*;

    /// Runs a program as the kernel's machine would, for the few operations that are used.
    fn run(code: &[Instruction], kind: DeviceKind, access: u8, major: u32, minor: u32) -> u64 {
        let kind = if kind == Block { 1 } else { 2 };
        let context = [u32::from(access) << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0_u64; 11], 0_usize);
        loop {
            let one = code[at];
            let (to, from) = (usize::from(one.registers & 15), usize::from(one.registers >> 4));
            let immediate = u64::try_from(one.immediate).unwrap();
            at += 1;
            match one.code {
                LOAD_WORD => registers[to] = context[usize::try_from(one.offset).unwrap() / 4].into(),
                MOVE => registers[to] = immediate,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_IF_NOT if registers[to] != immediate => at += usize::try_from(one.offset).unwrap(),
                JUMP_IF_NOT => {}
                EXIT => return registers[0],
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_default_program_decides_as_the_rules_say() {
        let code = program(&merged(&DeviceRule::defaults()));
        // kind, access, major, minor, allowed
        let table = [
            (Character, READ | WRITE, 1, 3, 1),
            (Character, ALL, 1, 9, 1),
            (Character, READ, 1, 1, 0),
            (Block, READ, 1, 3, 0),
            (Character, READ | WRITE, 136, 77, 1),
            (Character, READ, 195, 0, 0),
            (Character, MKNOD, 195, 0, 1),
            (Block, MKNOD, 8, 0, 1),
            (Block, MKNOD | READ, 8, 0, 0),
        ];
        for (kind, access, major, minor, allowed) in table {
            assert_eq!(run(&code, kind, access, major, minor), allowed, "{kind:?} {access} {major}:{minor}");
        }
    }

    #[test]
    fn rules_for_one_device_add_up() {
        let device = DeviceRule::device(Character, 195, 0);
        let rules = merged(&[device.only(true, false, false), device.only(false, true, false)]);
        assert_eq!(rules, [device.only(true, true, false)]);
        let code = program(&rules);
        assert_eq!(run(&code, Character, READ | WRITE, 195, 0), 1);
        assert_eq!(run(&code, Character, READ | MKNOD, 195, 0), 0);
    }

    #[test]
    fn nothing_follows_a_rule_for_everything() {
        let code = program(&[DeviceRule::everything(), DeviceRule::kind(Block)]);
        assert_eq!(code.iter().filter(|one| one.code == EXIT).count(), 1);
        assert_eq!(run(&code, Block, ALL, 8, 0), 1);
        assert_eq!(run(&program(&[]), Block, READ, 8, 0), 0);
    }

    #[test]
    fn rules_have_the_words_of_version_1() {
        let table = [
            (DeviceRule::everything(), "a *:* rwm"),
            (DeviceRule::device(Character, 1, 3), "c 1:3 rwm"),
            (DeviceRule::driver(Block, 8).only(true, false, false), "b 8:* r"),
        ];
        for (rule, words) in table {
            assert_eq!(rule.to_string(), words);
            assert_eq!(DeviceRule::parse(words), Some(rule));
        }
        for words in ["", "c", "c 1:3", "d 1:3 r", "c 1 r", "c x:3 r", "c 1:3 x"] {
            assert_eq!(DeviceRule::parse(words), None, "{words:?}");
        }
    }

    #[test]
    fn rules_for_no_device_are_refused() {
        let device = DeviceRule::device(Character, 1, 3);
        let table = [
            device.only(false, false, false),
            DeviceRule::device(Character, 4096, 0),
            DeviceRule::device(Character, 1, 1 << 20),
            DeviceRule { major: None, ..device },
            DeviceRule { kind: None, ..device },
        ];
        for rule in table {
            assert_eq!(rule.check().unwrap_err().kind(), ErrorKind::InvalidArgument, "{rule}");
        }
        DeviceRule::defaults().iter().for_each(|rule| rule.check().unwrap());
    }
}
