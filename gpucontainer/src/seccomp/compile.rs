//! From the profile to the program.
//!
//! ```text
//! load architecture
//! x86-64?  ──no──► i386? ──no──► return foreign
//!    │yes            └► its own tree
//! load number
//! ≥ 165? ──► ≥ 246? ──► …          a balanced tree over ranges of numbers with the same answer
//!    │           └► return allow   leaves: one return per answer and 255 instructions, shared
//! ≥ 78?  ──► load argument 0 …     or the tests of a call's arguments
//! ```
//!
//! Jumps only lead forward, so the program is made from its end: whatever an instruction jumps to is
//! there already. Conditional jumps reach 255 instructions; beyond that they go over an unconditional one.

use crate::error::{Error, ErrorKind, Result};
use crate::seccomp::filter::{Filter, value_of};
use crate::seccomp::profile::{Action, Architecture, Condition, ENOSYS, Operator, Profile};
use crate::seccomp::tables;
use crate::sys::seccomp as sys;
use crate::sys::seccomp::Instruction;

/// Calls of the x32 interface have this bit in their number.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// How far a conditional jump reaches.
const REACH: usize = u8::MAX as usize;

pub(super) fn compile(profile: &Profile) -> Result<Filter> {
    check(profile)?;
    let mut program = Program::default();
    if profile.is_allow_all() {
        program.answer(value_of(Action::Allow));
        return Ok(Filter { instructions: program.backwards, flags: profile.flags });
    }
    let mut trees = Vec::new();
    for &architecture in profile.architectures.iter().rev() {
        let (ranges, tests) = ranges(profile, architecture)?;
        let mut blocks = vec![None; tests.len()];
        let tree = program.tree(&ranges, &tests, &mut blocks);
        if program.distance(tree) > 0 {
            // A single answer that was there before: what comes now must lead to it, not fall past it.
            program.jump(tree);
        }
        trees.push((architecture, program.load(sys::NUMBER_OFFSET)));
    }
    let mut start = program.answer(value_of(profile.foreign_action));
    for (architecture, tree) in trees {
        start = program.branch(sys::JUMP_EQUAL, architecture.audit_value(), tree, start);
    }
    program.load(sys::ARCHITECTURE_OFFSET);
    if program.backwards.len() > sys::MAX_INSTRUCTIONS {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "seccomp profile makes {} instructions, the kernel takes {}",
                program.backwards.len(),
                sys::MAX_INSTRUCTIONS
            ),
        ));
    }
    program.backwards.reverse();
    Ok(Filter { instructions: program.backwards, flags: profile.flags })
}

fn check(profile: &Profile) -> Result<()> {
    let invalid = |message| Err(Error::new(ErrorKind::InvalidArgument, message));
    let actions = profile.rules.iter().map(|rule| rule.action);
    for action in actions.chain([profile.default_action, profile.foreign_action]).chain(profile.unknown_action) {
        if let Action::Errno(number) = action {
            if number > sys::MAX_ERRNO {
                return invalid(format!("seccomp profile: error number {number} is above {}", sys::MAX_ERRNO));
            }
        }
    }
    for rule in &profile.rules {
        for condition in &rule.conditions {
            if condition.argument > 5 {
                return invalid(format!(
                    "seccomp profile: system calls have arguments 0 to 5, not {}",
                    condition.argument
                ));
            }
        }
    }
    Ok(())
}

/// The answer to a range of numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    /// Return this value.
    Always(u32),
    /// Try these tests, by their place in the list of tests.
    Tested(usize),
}

/// The first number and the answer to it and those that follow.
type Range = (u32, Answer);

/// The rules about one call, in order. Nothing comes after a clause without conditions, and the last is one.
type Tests<'a> = Vec<Clause<'a>>;

#[derive(Clone, Debug, PartialEq)]
struct Clause<'a> {
    conditions: &'a [Condition],
    value: u32,
}

/// The answers of `profile` for all numbers of `architecture`: each holds from its number to the next.
fn ranges(profile: &Profile, architecture: Architecture) -> Result<(Vec<Range>, Vec<Tests<'_>>)> {
    let mut calls = Vec::new();
    calls.resize_with(1 + tables::newest(architecture), Call::default);
    for &(_, number) in tables::table(architecture) {
        if let Some(call) = calls.get_mut(number as usize) {
            call.exists = true;
        }
    }
    let mut newest = None;
    for rule in &profile.rules {
        let value = value_of(rule.action);
        for name in &rule.names {
            let Some(number) = architecture.number(name) else {
                if tables::known(name) {
                    continue;
                }
                let message = format!("seccomp profile: no architecture has a system call {name:?}");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            };
            newest = newest.max(Some(number));
            let Some(call) = calls.get_mut(number as usize) else { continue };
            if call.otherwise.is_none() {
                if rule.conditions.is_empty() {
                    call.otherwise = Some(value);
                } else {
                    call.tests.push(Clause { conditions: &rule.conditions, value });
                }
            }
        }
    }

    let default = value_of(profile.default_action);
    let unknown = Answer::Always(profile.unknown_action.map_or(default, value_of));
    let mut tests: Vec<Tests<'_>> = Vec::new();
    let mut ranges: Vec<Range> = Vec::new();
    let mut add = |start, answer| {
        if ranges.last().is_none_or(|&(_, last)| last != answer) {
            ranges.push((start, answer));
        }
    };
    for (number, mut call) in (0..).zip(calls) {
        let otherwise = call.otherwise.unwrap_or(default);
        let answer = if !call.exists || newest.is_none_or(|newest| number > newest) {
            unknown
        } else if call.tests.is_empty() {
            Answer::Always(otherwise)
        } else {
            call.tests.push(Clause { conditions: &[], value: otherwise });
            let at = tests.iter().position(|known| *known == call.tests).unwrap_or_else(|| {
                tests.push(call.tests);
                tests.len() - 1
            });
            Answer::Tested(at)
        };
        add(number, answer);
    }
    // Newer than the newest: the last range above ends with the newest call that exists.
    add(u32::try_from(1 + tables::newest(architecture)).unwrap_or(X32_BIT), unknown);
    if architecture == Architecture::X86_64 {
        add(X32_BIT, Answer::Always(value_of(Action::Errno(ENOSYS))));
    }
    Ok((ranges, tests))
}

/// What the rules say about one number.
#[derive(Debug, Default)]
struct Call<'a> {
    exists: bool,
    tests: Tests<'a>,
    /// The answer when no test holds; no rule after it counts.
    otherwise: Option<u32>,
}

/// A place in a program that is made from its end: how many instructions follow the one there.
type Place = usize;

#[derive(Debug, Default)]
struct Program {
    backwards: Vec<Instruction>,
    /// Where each value was returned last.
    answers: Vec<(u32, Place)>,
}

impl Program {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Place {
        self.backwards.push(Instruction { code, jt, jf, k });
        self.backwards.len() - 1
    }

    /// How many instructions the next one would skip to get to `place`.
    fn distance(&self, place: Place) -> usize {
        self.backwards.len() - 1 - place
    }

    fn load(&mut self, offset: u32) -> Place {
        self.push(sys::LOAD, 0, 0, offset)
    }

    /// Returns `value`, in an instruction that is there already if it can be reached.
    fn answer(&mut self, value: u32) -> Place {
        let known = self.answers.iter().position(|answer| answer.0 == value);
        if let Some(&(_, place)) = known.and_then(|at| self.answers.get(at)) {
            // One less, as some instruction will come in between more often than not.
            if self.distance(place) < REACH {
                return place;
            }
        }
        let place = self.push(sys::RETURN, 0, 0, value);
        match known.and_then(|at| self.answers.get_mut(at)) {
            Some(answer) => answer.1 = place,
            None => self.answers.push((value, place)),
        }
        place
    }

    fn branch(&mut self, code: u16, k: u32, mut yes: Place, mut no: Place) -> Place {
        loop {
            match (u8::try_from(self.distance(yes)), u8::try_from(self.distance(no))) {
                (Ok(jt), Ok(jf)) => return self.push(code, jt, jf, k),
                (Err(_), _) => yes = self.jump(yes),
                (_, Err(_)) => no = self.jump(no),
            }
        }
    }

    fn jump(&mut self, place: Place) -> Place {
        // A program that is too long for the number is refused at the end.
        let distance = u32::try_from(self.distance(place)).unwrap_or(u32::MAX);
        self.push(sys::JUMP, 0, 0, distance)
    }

    fn tree(&mut self, ranges: &[Range], tests: &[Tests<'_>], blocks: &mut [Option<Place>]) -> Place {
        let (left, right) = match ranges {
            [] => return self.answer(value_of(Action::KillProcess)),
            [(_, Answer::Always(value))] => return self.answer(*value),
            [(_, Answer::Tested(at))] => {
                let (Some(list), Some(block)) = (tests.get(*at), blocks.get_mut(*at)) else {
                    return self.answer(value_of(Action::KillProcess));
                };
                return *block.get_or_insert_with(|| self.block(list));
            }
            _ => ranges.split_at(ranges.len() / 2),
        };
        let middle = right.first().map_or(0, |range| range.0);
        let (no, yes) = if right.len() > 1 {
            let yes = self.tree(right, tests, blocks);
            (self.tree(left, tests, blocks), yes)
        } else {
            // A leaf is made last, to be near.
            let no = self.tree(left, tests, blocks);
            (no, self.tree(right, tests, blocks))
        };
        self.branch(sys::JUMP_GREATER_OR_EQUAL, middle, yes, no)
    }

    fn block(&mut self, list: &[Clause<'_>]) -> Place {
        let mut start = None;
        for clause in list.iter().rev() {
            let mut place = self.answer(clause.value);
            if let Some(otherwise) = start {
                for condition in clause.conditions.iter().rev() {
                    place = self.condition(condition, place, otherwise);
                }
            }
            start = Some(place);
        }
        start.unwrap_or_else(|| self.answer(value_of(Action::KillProcess)))
    }

    fn condition(&mut self, condition: &Condition, yes: Place, no: Place) -> Place {
        let (value, argument) = (condition.value, condition.argument);
        match condition.operator {
            Operator::Equal => self.equal(argument, u64::MAX, value, yes, no),
            Operator::NotEqual => self.equal(argument, u64::MAX, value, no, yes),
            Operator::MaskedEqual(mask) if value & !mask != 0 => no,
            Operator::MaskedEqual(mask) => self.equal(argument, mask, value, yes, no),
            Operator::Greater => self.greater(sys::JUMP_GREATER, argument, value, yes, no),
            Operator::GreaterOrEqual => self.greater(sys::JUMP_GREATER_OR_EQUAL, argument, value, yes, no),
            Operator::Less => self.greater(sys::JUMP_GREATER_OR_EQUAL, argument, value, no, yes),
            Operator::LessOrEqual => self.greater(sys::JUMP_GREATER, argument, value, no, yes),
        }
    }

    fn equal(&mut self, argument: u8, mask: u64, value: u64, yes: Place, no: Place) -> Place {
        let mut place = yes;
        for half in [Half::Low, Half::High] {
            let (mask, value) = (half.of(mask), half.of(value));
            if mask == 0 {
                continue;
            }
            self.branch(sys::JUMP_EQUAL, value, place, no);
            if mask != u32::MAX {
                self.push(sys::AND, 0, 0, mask);
            }
            place = self.load_half(argument, half);
        }
        place
    }

    /// `code` compares the lower halves if the upper ones are equal.
    fn greater(&mut self, code: u16, argument: u8, value: u64, yes: Place, no: Place) -> Place {
        let (low, high) = (Half::Low.of(value), Half::High.of(value));
        self.branch(code, low, yes, no);
        let low_test = self.load_half(argument, Half::Low);
        let high_equal = self.branch(sys::JUMP_EQUAL, high, low_test, no);
        self.branch(sys::JUMP_GREATER, high, yes, high_equal);
        self.load_half(argument, Half::High)
    }

    fn load_half(&mut self, argument: u8, half: Half) -> Place {
        let upper = cfg!(target_endian = "little") == matches!(half, Half::High);
        self.load(sys::ARGUMENTS_OFFSET + 8 * u32::from(argument) + if upper { 4 } else { 0 })
    }
}

#[derive(Clone, Copy, Debug)]
enum Half {
    Low,
    High,
}

impl Half {
    fn of(self, value: u64) -> u32 {
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        u32::from_be_bytes(match self {
            Self::High => [a, b, c, d],
            Self::Low => [e, f, g, h],
        })
    }
}
