//! The program against the profile: every number, with a filter machine of the test's own.

use super::*;
use crate::error::ErrorKind;
use crate::seccomp::filter::value_of;
use proptest::prelude::*;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What the kernel would do: `struct seccomp_data` as bytes, and a machine with one accumulator.
fn run(filter: &Filter, architecture: u32, number: u32, arguments: &[u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_ne_bytes());
    data.extend_from_slice(&architecture.to_ne_bytes());
    data.extend_from_slice(&0x7fff_0000_1234_u64.to_ne_bytes());
    for argument in arguments {
        data.extend_from_slice(&argument.to_ne_bytes());
    }
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let Instruction { code, jt, jf, k } = filter.instructions()[at];
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => {
                let word = data[k as usize..][..4].try_into().unwrap();
                accumulator = u32::from_ne_bytes(word);
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x06 => return k,
            other => panic!("unexpected instruction {other:#x}"),
        }
    }
}

fn numbers() -> impl Iterator<Item = u32> {
    let edges = [0x3fff_ffff, 0x4000_0000, 0x4000_0001, 0x4000_0200, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
    (0..600).chain([1000, 0xffff]).chain(edges)
}

/// Values that make each condition of the profile hold and fail, and some more.
fn samples(profile: &Profile) -> Vec<[u64; 6]> {
    let mut values = vec![0, 1, u64::MAX, 0xffff_ffff, 0x1_0000_0000];
    for condition in profile.rules.iter().flat_map(|rule| &rule.conditions) {
        let value = condition.value;
        values.extend([value, value.wrapping_add(1), value.wrapping_sub(1), value ^ (1 << 32), !value, value << 32]);
        if let Operator::MaskedEqual(mask) = condition.operator {
            values.extend([value | !mask, mask, value ^ (mask & mask.wrapping_neg())]);
        }
    }
    values.sort_unstable();
    values.dedup();
    let mut samples: Vec<[u64; 6]> = values.iter().map(|&value| [value; 6]).collect();
    // Neighbouring arguments differ, so that no program passes that reads the wrong one.
    samples.extend(values.windows(6).map(|window| <[u64; 6]>::try_from(window).unwrap()));
    samples
}

#[track_caller]
fn assert_same(profile: &Profile) {
    let filter = profile.compile().unwrap();
    let samples = samples(profile);
    for architecture in Architecture::ALL {
        let tested = |rule: &&Rule| !rule.conditions.is_empty();
        let names = profile.rules.iter().filter(tested).flat_map(|rule| &rule.names);
        let tested: HashSet<u32> = names.filter_map(|name| architecture.number(name)).collect();
        for number in numbers() {
            // Where no rule looks at arguments two are as good as all.
            let count = if tested.contains(&number) { samples.len() } else { 2 };
            for arguments in samples.iter().take(count) {
                let wanted = value_of(profile.decide(architecture, number, arguments));
                let got = run(&filter, architecture.audit_value(), number, arguments);
                assert_eq!(got, wanted, "{architecture:?} number {number:#x} arguments {arguments:x?}");
            }
        }
    }
    let foreign = value_of(if profile.is_allow_all() { Action::Allow } else { profile.foreign_action });
    assert_eq!(run(&filter, 0x8000_0016, 0, &[0; 6]), foreign, "a call of s390x");
}

#[test]
fn the_default_program_is_the_default_profile() {
    let every_capability = (1 << 41) - 1;
    for capabilities in [0, 0x0000_0000_a804_25fb, 1 << 21, every_capability] {
        assert_same(&Profile::default_for(capabilities));
    }
    assert_same(&Profile::default_for(0).architecture(Architecture::X86).architecture(Architecture::Aarch64));
    assert_same(&Profile::allow_all());
    assert_same(&Profile::new(Action::Errno(1)));
}

#[test]
fn the_default_profile_in_words() {
    let Some(native) = Architecture::NATIVE else { return };
    let answer = |capabilities: u64, name: &str, arguments: &[u64]| {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let number = native.number(name).unwrap_or_else(|| panic!("{name}"));
        Profile::default_for(capabilities).decide(native, number, &all)
    };
    let (permitted, missing) = (Action::Errno(1), Action::Errno(38));
    for name in ["read", "openat", "mmap", "execve", "futex", "ptrace", "mbind", "epoll_pwait", "rseq", "io_submit"] {
        assert_eq!(answer(0, name, &[]), Action::Allow, "{name}");
    }
    for (name, capability) in [
        ("mount", 21),
        ("umount2", 21),
        ("setns", 21),
        ("fsopen", 21),
        ("bpf", 39),
        ("bpf", 21),
        ("perf_event_open", 38),
        ("init_module", 16),
        ("chroot", 18),
        ("settimeofday", 25),
        ("open_by_handle_at", 2),
        ("reboot", 22),
        ("userfaultfd", 19),
        ("syslog", 34),
    ] {
        assert_eq!(answer(0, name, &[]), permitted, "{name}");
        assert_eq!(answer(1 << 12, name, &[]), permitted, "{name} with CAP_NET_ADMIN");
        assert_eq!(answer(1 << capability, name, &[]), Action::Allow, "{name} with capability {capability}");
    }
    for name in ["keyctl", "add_key", "request_key", "kexec_load", "swapon", "swapoff", "io_uring_setup", "nfsservctl"]
    {
        assert_eq!(answer(u64::MAX, name, &[]), permitted, "{name}");
    }
    assert_eq!(answer(0, "clone3", &[]), missing);
    assert_eq!(answer(1 << 21, "clone3", &[]), Action::Allow);
    assert_eq!(answer(0, "clone", &[0x0120_0011]), Action::Allow);
    assert_eq!(answer(0, "clone", &[0x1000_0011]), permitted);
    assert_eq!(answer(1 << 21, "clone", &[0x1000_0011]), Action::Allow);
    assert_eq!(answer(0, "unshare", &[0x400]), Action::Allow);
    assert_eq!(answer(0, "unshare", &[0x80]), permitted);
    assert_eq!(answer(0, "socket", &[2, 1, 0]), Action::Allow);
    assert_eq!(answer(0, "socket", &[40]), permitted);
    assert_eq!(answer(0, "socket", &[38]), permitted);
    assert_eq!(answer(0, "socket", &[0x1_0000_0028]), permitted, "the kernel looks at the lower half only");
    assert_eq!(answer(0, "ioctl", &[0, 0x5401]), Action::Allow);
    assert_eq!(answer(0, "ioctl", &[0, 0xf_0000_5412]), permitted);
    assert_eq!(answer(0, "personality", &[0xffff_ffff]), Action::Allow);
    assert_eq!(answer(0, "personality", &[0x0040_0000]), permitted);
    let decide = |number| Profile::default_for(0).decide(native, number, &[0; 6]);
    assert_eq!(decide(350), missing, "a hole");
    assert_eq!(decide(468), missing, "newer than what the profile names");
    assert_eq!(decide(5000), missing, "not born yet");
}

#[test]
fn the_default_program_is_small_and_quickly_made() {
    let filter = Profile::default_for(0xa804_25fb).compile().unwrap();
    println!("{} instructions", filter.instructions().len());
    assert!(filter.instructions().len() < 250, "{} instructions", filter.instructions().len());
    let best = (0..50)
        .map(|_| {
            let start = Instant::now();
            let made = Profile::default_for(0xa804_25fb).compile().unwrap();
            assert_eq!(made, filter);
            start.elapsed()
        })
        .min()
        .unwrap();
    println!("made in {best:?}");
    // An optimised build needs some ten microseconds; this one is not optimised and the machine is shared.
    assert!(best < Duration::from_millis(2), "{best:?}");
}

#[test]
fn filters_and_profiles_survive_json() {
    let profile = Profile::default_for(1 << 21);
    let text = serde_json::to_string(&profile).unwrap();
    let back: Profile = serde_json::from_str(&text).unwrap();
    assert_eq!(back, profile);
    let filter = profile.compile().unwrap();
    let back: Filter = serde_json::from_str(&serde_json::to_string(&filter).unwrap()).unwrap();
    assert_eq!(back, filter);
    assert_eq!(filter.to_bytes().len(), 8 * filter.instructions().len());
    assert_eq!(filter.to_bytes()[4..8], filter.instructions()[0].k.to_ne_bytes());
}

#[test]
fn what_a_filter_says_about_itself() {
    let everything = Profile::allow_all().compile().unwrap();
    assert_eq!(everything.instructions().len(), 1);
    assert!(everything.allows_everything());
    let rule = Rule::new(Action::Notify, ["bind"]);
    let flags = FilterFlags { wait_killable: true, ..FilterFlags::default() };
    let listened = Profile::default_for(0).flags(flags).rule(rule).compile().unwrap();
    assert!(listened.needs_listener() && !listened.allows_everything());
    assert_eq!(listened.flag_bits(), 8 | 32);
    assert_eq!(listened.apply_to_current_thread().unwrap_err().kind(), ErrorKind::Unsupported);
    let plain = Profile::default_for(0).compile().unwrap();
    assert!(!plain.needs_listener());
    assert_eq!(plain.flag_bits(), 4);
}

#[test]
fn what_cannot_be_compiled_says_why() {
    let name = Profile::new(Action::Allow).rule(Rule::new(Action::Trap, ["opne"]));
    let argument =
        Profile::new(Action::Allow).rule(Rule::new(Action::Trap, ["open"]).when(Condition::new(6, Operator::Equal, 0)));
    let number = Profile::new(Action::Errno(4096));
    let mut long = Profile::new(Action::Allow);
    for value in 0..2000 {
        long = long.rule(Rule::new(Action::Trap, ["read"]).when(Condition::new(0, Operator::Equal, value)));
    }
    for (profile, words) in [(name, "\"opne\""), (argument, "not 6"), (number, "4096"), (long, "the kernel takes 4096")]
    {
        let error = profile.compile().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(words), "{error}");
    }
}

mod bundles {
    use super::*;

    fn read(text: &str) -> crate::Result<Profile> {
        Profile::from_oci(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn texts_and_files_are_read_or_refused() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}"#;
        assert_eq!(Profile::from_json(text).unwrap(), read(text).unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        assert_eq!(Profile::from_file(file.path()).unwrap(), read(text).unwrap());
        std::fs::write(&file, b"\xff").unwrap();
        let error = Profile::from_file(file.path()).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
        let conditional = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}, "excludes": {}}]}"#;
        let table = [
            ("", ErrorKind::InvalidArgument),
            ("[]", ErrorKind::InvalidArgument),
            ("{}", ErrorKind::InvalidArgument),
            (r#"{"defaultAction": "SCMP_ACT_SHRUG"}"#, ErrorKind::InvalidArgument),
            (r#"{"archMap": []}"#, ErrorKind::Unsupported),
            (conditional, ErrorKind::Unsupported),
        ];
        for (text, kind) in table {
            let error = Profile::from_json(text).unwrap_err();
            assert_eq!(error.kind(), kind, "{text}: {error}");
        }
    }

    #[test]
    fn rules_are_read_as_engines_do() {
        let Some(native) = Architecture::NATIVE else { return };
        let profile = read(
            r#"{
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPS"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [
                    {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                    {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["read", "s390_pci_mmio_read", "fstat"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                    {"names": ["write"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 2, "value": 10, "op": "SCMP_CMP_LE"}, {"index": 0, "value": 2, "op": "SCMP_CMP_NE"}]},
                    {"names": ["lseek"], "action": "SCMP_ACT_KILL_PROCESS",
                     "args": [{"index": 2, "value": 9, "op": "SCMP_CMP_GE"}]},
                    {"names": ["lseek"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["cachestat"], "action": "SCMP_ACT_TRACE", "errnoRet": 7}
                ]
            }"#,
        )
        .unwrap();
        let answer = |name: &str, arguments: [u64; 3]| {
            let [a, b, c] = arguments;
            profile.decide(native, native.number(name).unwrap(), &[a, b, c, 0, 0, 0])
        };
        assert_eq!(answer("clone", [0x11, 0, 0]), Action::Allow);
        assert_eq!(answer("clone", [0x2000_0011, 0, 0]), Action::Errno(13));
        assert_eq!(answer("personality", [8, 0, 0]), Action::Allow);
        assert_eq!(answer("personality", [9, 0, 0]), Action::Errno(13));
        assert_eq!(answer("read", [0; 3]), Action::Allow);
        assert_eq!(answer("write", [1, 0, 10]), Action::Allow);
        assert_eq!(answer("write", [2, 0, 10]), Action::Errno(13));
        assert_eq!(answer("write", [1, 0, 11]), Action::Errno(13));
        assert_eq!(answer("lseek", [0, 0, 9]), Action::Allow, "the rule without conditions goes first");
        assert_eq!(answer("cachestat", [0; 3]), Action::Trace(7));
        assert_eq!(answer("mseal", [0; 3]), Action::Errno(38), "newer than what the profile names");
        if native == Architecture::X86_64 {
            assert_eq!(profile.decide(Architecture::X86, 3, &[0; 6]), Action::Allow);
        }
        assert!(profile.flags.log && !profile.flags.allow_speculation);
        assert_same(&profile);
    }

    #[test]
    fn a_list_of_refusals_takes_no_call_for_unknown() {
        let Some(native) = Architecture::NATIVE else { return };
        let profile = read(
            r#"{"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        assert_eq!(profile.decide(native, 5000, &[0; 6]), Action::Allow);
        assert_eq!(profile.decide(native, native.number("mount").unwrap(), &[0; 6]), Action::Errno(1));
        assert!(profile.flags.allow_speculation);
        assert_same(&profile);
    }

    #[test]
    fn what_cannot_be_meant_says_why() {
        for (text, words) in [
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["bind", "kill"], "action": "SCMP_ACT_ERRNO",
                    "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
                "seccomp rule for bind, kill",
            ),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}"#, "5000"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::KillProcess),
        Just(Action::KillThread),
        Just(Action::Log),
        Just(Action::Notify),
        Just(Action::Trap),
        (0..=4095_u16).prop_map(Action::Errno),
        any::<u16>().prop_map(Action::Trace),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, any::<u64>(), (0..4_u64).prop_map(|value| value << 31), Just(u64::from(u32::MAX))]
}

fn condition() -> impl Strategy<Value = Condition> {
    let operator = prop_oneof![
        Just(Operator::Equal),
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Greater),
        Just(Operator::GreaterOrEqual),
        value().prop_map(Operator::MaskedEqual),
    ];
    (0..6_u8, operator, value(), any::<bool>()).prop_map(|(argument, operator, value, possible)| match operator {
        Operator::MaskedEqual(mask) if possible => Condition::new(argument, operator, value & mask),
        _ => Condition::new(argument, operator, value),
    })
}

/// Few calls with many conditions, or nearly all calls with answers of their own, so that jumps get long.
fn rule() -> impl Strategy<Value = Rule> {
    let names: Vec<&'static str> = tables::table(Architecture::X86_64).iter().map(|entry| entry.0).collect();
    let few = prop::sample::subsequence(names[..6].to_vec(), 1..3);
    let many = prop::sample::subsequence(names, 1..200);
    let conditions = prop::collection::vec(condition(), 0..4);
    (action(), prop_oneof![few, many], conditions)
        .prop_map(|(action, names, conditions)| conditions.into_iter().fold(Rule::new(action, names), Rule::when))
}

fn architectures() -> impl Strategy<Value = Vec<Architecture>> {
    prop::sample::subsequence(Architecture::ALL.to_vec(), 0..=3).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_program_is_its_profile(
        default_action in action(),
        unknown_action in prop::option::of(action()),
        foreign_action in action(),
        architectures in architectures(),
        rules in prop::collection::vec(rule(), 0..12),
    ) {
        let flags = FilterFlags::default();
        let profile = Profile { default_action, unknown_action, foreign_action, architectures, flags, rules };
        let filter = profile.compile();
        prop_assume!(!matches!(&filter, Err(error) if error.to_string().contains("the kernel takes 4096")));
        let filter = filter.unwrap();
        let samples = samples(&profile);
        for architecture in Architecture::ALL {
            for (at, number) in numbers().enumerate() {
                // Each number meets some of the samples, and over the numbers each sample is met.
                for arguments in samples.iter().skip(at % 13).step_by(13) {
                    let wanted = value_of(profile.decide(architecture, number, arguments));
                    let got = run(&filter, architecture.audit_value(), number, arguments);
                    prop_assert_eq!(got, wanted, "{:?} {:#x} {:x?}", architecture, number, arguments);
                }
            }
        }
    }
}

/// Hundreds of answers, each its own: far more than a conditional jump reaches.
#[test]
fn long_jumps_arrive() {
    for conditional in [false, true] {
        long_jumps(conditional);
    }
}

fn long_jumps(conditional: bool) {
    // Tests of an argument take more room, and the kernel has a limit.
    let names = if conditional { 200 } else { 383 };
    let table = &tables::table(Architecture::X86_64)[..names];
    let mut profile = Profile::new(Action::Allow);
    profile.architectures = vec![Architecture::X86_64, Architecture::X86];
    for (entry, errno) in table.iter().zip(1_u16..) {
        let errno = errno * 10;
        let rule = Rule::new(Action::Errno(errno), [entry.0]);
        let condition = Condition::new(5, Operator::Greater, u64::from(errno));
        profile.rules.push(if conditional { rule.when(condition) } else { rule });
    }
    let filter = profile.compile().unwrap();
    assert!(filter.instructions().len() > names * 3);
    for number in numbers() {
        for architecture in [Architecture::X86_64, Architecture::X86] {
            for last in [0, 2000, 1 << 40] {
                let arguments = [0, 0, 0, 0, 0, last];
                let wanted = value_of(profile.decide(architecture, number, &arguments));
                assert_eq!(run(&filter, architecture.audit_value(), number, &arguments), wanted);
            }
        }
    }
}
