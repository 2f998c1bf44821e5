//! The hooks of specifications: NVIDIA's are read and carried out as data, others are the caller's choice.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::cdi::kernel;
use crate::gpu::cdi::spec::Hook;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{elf, is_version};
use crate::gpu::grant::{GpuGrant, HookMoment, Symlink, VendorHook};
use crate::sys::fs;

use serde::{Deserialize, Serialize};
use std::path::{Component, Path, PathBuf};

/// What becomes of hooks that are no NVIDIA hooks: programs of the host that a vendor wants to be executed.
///
/// A hook runs outside of the container, with the rights of the process that starts the sandbox, and sees the
/// container's tree, which may be hostile.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VendorHooks {
    /// The device cannot be granted.
    #[default]
    Refuse,
    /// They are left out; the device may not work.
    Skip,
    /// They run, with the environment of their description and nothing else of the caller's.
    ///
    /// Those of `startContainer`, which run inside, and of `poststop` are refused nevertheless.
    Run,
}

/// The names of NVIDIA's program, newest first, with the words before the name of what is to be done.
const PROGRAMS: [(&str, &[&str]); 2] = [("nvidia-cdi-hook", &[]), ("nvidia-ctk", &["hook"])];

/// Carries out `hooks`, of which NVIDIA's become part of the grant.
pub(crate) fn apply(hooks: &[&Hook], others: VendorHooks, root: &DriverRoot, grant: &mut GpuGrant) -> Result<()> {
    for (number, hook) in hooks.iter().enumerate() {
        // Each specification of a vendor brings the same ones.
        if hooks[..number].contains(hook) {
            continue;
        }
        let known = match task(hook) {
            Some((name, options)) => {
                carry_out(name, &options, root, grant).with_context(|| format!("NVIDIA's hook {name}"))?
            }
            None => false,
        };
        if !known {
            other(hook, others, grant)?;
        }
    }
    grant.links.sort();
    grant.links.dedup();
    Ok(())
}

/// What NVIDIA's program is to do, and its options; `None` for other programs.
fn task(hook: &Hook) -> Option<(&str, Vec<(&str, &str)>)> {
    let name = Path::new(&hook.path).file_name()?.to_str()?;
    let (_, before) = PROGRAMS.iter().find(|(program, _)| *program == name)?;
    let mut words = hook.args.get(1..)?.iter().map(String::as_str);
    before.iter().try_for_each(|word| (words.next() == Some(word)).then_some(()))?;
    let task = words.next()?;
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let option = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
        options.push(match option.split_once('=') {
            Some(pair) => pair,
            None => (option, words.next().unwrap_or_default()),
        });
    }
    Some((task, options))
}

/// Makes a task of NVIDIA's part of the grant; false if it is not known.
fn carry_out(task: &str, options: &[(&str, &str)], root: &DriverRoot, grant: &mut GpuGrant) -> Result<bool> {
    let all = |wanted: &'static str| options.iter().filter(move |(name, _)| *name == wanted).map(|(_, value)| *value);
    match task {
        "create-symlinks" => {
            for text in all("link") {
                grant.links.push(link(text)?);
            }
        }
        "update-ldcache" => {
            for folder in all("folder") {
                let folder = inside(folder)?;
                if !grant.library_directories.contains(&folder) {
                    grant.library_directories.push(folder);
                }
            }
        }
        "create-soname-symlinks" => {
            for folder in all("folder") {
                soname_links(&inside(folder)?, grant)?;
            }
        }
        // The versions of libraries for other CUDA versions are chosen by that of the driver.
        "enable-cuda-compat" => {
            if let Some(version) = all("host-driver-version").find(|version| is_version(version)) {
                grant.driver_version = Some(version.to_owned());
            }
        }
        "disable-device-node-modification" | "update-nvidia-params" => kernel::hide_other_gpus(root, grant),
        // Directories of nodes are made anew for each container, with this mode.
        "chmod" => return Ok(all("mode").all(|mode| mode.trim_start_matches('0') == "755")),
        _ => return Ok(false),
    }
    Ok(true)
}

/// `target::link`, as NVIDIA writes it.
fn link(text: &str) -> Result<Symlink> {
    let parts = text.split_once("::").filter(|(target, _)| !target.is_empty() && !target.contains('\0'));
    let refuse = || Error::new(ErrorKind::InvalidArgument, format!("link {text:?} is not TARGET::LINK"));
    let (target, link) = parts.ok_or_else(refuse)?;
    Ok(Symlink { link: inside(link)?, target: PathBuf::from(target) })
}

/// An absolute path of the container that never goes up.
fn inside(path: &str) -> Result<PathBuf> {
    let plain = |part| matches!(part, Component::Normal(_));
    let mut parts = Path::new(path).components();
    if parts.next() == Some(Component::RootDir) && parts.all(plain) && !path.contains('\0') {
        return Ok(Path::new(path).components().collect());
    }
    Err(Error::new(ErrorKind::InvalidArgument, format!("path {path:?} is not absolute, or has \"..\"")))
}

/// The names by which programs ask for the granted libraries of a directory.
fn soname_links(folder: &Path, grant: &mut GpuGrant) -> Result<()> {
    let mut links = Vec::new();
    for mount in grant.mounts.iter().filter(|mount| mount.target.parent() == Some(folder)) {
        let Ok(object) = elf::read(&fs::open(&mount.source)?) else { continue };
        let (Some(own), Some(soname)) = (mount.target.file_name(), object.soname) else { continue };
        let link = folder.join(&soname);
        if !grant.mounts.iter().any(|other| other.target == link) {
            links.push(Symlink { link, target: own.into() });
        }
    }
    grant.links.extend(links);
    Ok(())
}

/// A hook that is not known here.
fn other(hook: &Hook, allowed: VendorHooks, grant: &mut GpuGrant) -> Result<()> {
    let refuse = |why: &str| {
        let message = format!("hook {} of moment {}: {why}", hook.path, hook.hook_name);
        Err(Error::new(ErrorKind::Unsupported, message).with_path(&hook.path))
    };
    match allowed {
        VendorHooks::Refuse => return refuse("the request does not allow programs of vendors to be run"),
        VendorHooks::Skip => {
            tracing::debug!(hook = hook.path, moment = hook.hook_name, "vendor hook left out");
            return Ok(());
        }
        VendorHooks::Run => {}
    }
    let moment = match hook.hook_name.as_str() {
        "prestart" | "createRuntime" | "createContainer" => HookMoment::CreateRuntime,
        "poststart" => HookMoment::Poststart,
        "startContainer" => return refuse("nothing is executed inside before the application"),
        _ => return refuse("nothing is executed after the container has ended"),
    };
    let args = if hook.args.is_empty() { vec![hook.path.clone()] } else { hook.args.clone() };
    let pair = |line: &String| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    grant.hooks.push(VendorHook {
        moment,
        path: PathBuf::from(&hook.path),
        args,
        env: hook.env.iter().filter_map(pair).collect(),
        timeout_seconds: hook.timeout.filter(|seconds| *seconds > 0),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(path: &str, args: &[&str]) -> Hook {
        let args = args.iter().map(|word| (*word).to_owned()).collect();
        Hook { hook_name: "createContainer".into(), path: path.into(), args, ..Hook::default() }
    }

    fn run(hooks: &[Hook], others: VendorHooks) -> Result<GpuGrant> {
        let mut grant = GpuGrant::default();
        let hooks: Vec<&Hook> = hooks.iter().collect();
        apply(&hooks, others, &DriverRoot::new("/no/such/root"), &mut grant)?;
        Ok(grant)
    }

    #[test]
    fn nvidia_s_hooks_become_data() {
        let new = "/usr/bin/nvidia-cdi-hook";
        let old = "/usr/local/bin/nvidia-ctk";
        let hooks = [
            hook(new, &["nvidia-cdi-hook", "create-symlinks", "--link", "libcuda.so.1::/usr/lib64/libcuda.so"]),
            hook(old, &["nvidia-ctk", "hook", "create-symlinks", "--link=../x::/usr/lib64/gbm/y", "--link", "a::/b"]),
            hook(
                new,
                &["x", "update-ldcache", "--ldconfig-path", "@/sbin/ldconfig", "--folder", "/usr/lib64", "--folder=/a"],
            ),
            hook(new, &["x", "update-ldcache", "--folder", "/usr/lib64/"]),
            hook(new, &["x", "chmod", "--mode", "755", "--path", "/dev/dri"]),
            hook(new, &["x", "enable-cuda-compat", "--host-driver-version=550.163.01"]),
            hook(new, &["x", "disable-device-node-modification"]),
            hook(new, &["x", "create-soname-symlinks", "--folder", "/usr/lib64"]),
        ];
        let grant = run(&hooks, VendorHooks::Refuse).unwrap();
        let links: Vec<String> =
            grant.links.iter().map(|link| format!("{} {}", link.link.display(), link.target.display())).collect();
        assert_eq!(links, ["/b a", "/usr/lib64/gbm/y ../x", "/usr/lib64/libcuda.so libcuda.so.1"]);
        assert_eq!(grant.library_directories, [Path::new("/usr/lib64"), Path::new("/a")]);
        assert_eq!(grant.driver_version.as_deref(), Some("550.163.01"));
        assert!(grant.hooks.is_empty());
    }

    #[test]
    fn hooks_that_would_leave_the_container_are_refused() {
        for bad in ["x", "::/a", "a::b", "a::/b/../c", "a::../b", ""] {
            let hooks = [hook("/usr/bin/nvidia-cdi-hook", &["x", "create-symlinks", "--link", bad])];
            let error = run(&hooks, VendorHooks::Run).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad:?}");
        }
        let hooks = [hook("/usr/bin/nvidia-cdi-hook", &["x", "update-ldcache", "--folder", "../lib"])];
        assert!(run(&hooks, VendorHooks::Run).is_err());
    }

    #[test]
    fn other_hooks_need_the_caller_s_word() {
        let others = [
            hook("/usr/bin/vendor-hook", &[]),
            hook("/usr/bin/nvidia-ctk", &["nvidia-ctk", "runtime", "configure"]),
            hook("/usr/bin/nvidia-cdi-hook", &["x", "something-new"]),
            hook("/usr/bin/nvidia-cdi-hook", &["x", "chmod", "--mode", "777", "--path", "/etc"]),
        ];
        for hook in others {
            let hooks = [hook];
            assert_eq!(run(&hooks, VendorHooks::Refuse).unwrap_err().kind(), ErrorKind::Unsupported, "{hooks:?}");
            assert!(run(&hooks, VendorHooks::Skip).unwrap().is_empty());
            let grant = run(&hooks, VendorHooks::Run).unwrap();
            assert_eq!(grant.hooks[0].path, Path::new(&hooks[0].path));
            assert!(!grant.hooks[0].args.is_empty());
        }
        for moment in ["startContainer", "poststop"] {
            let late = Hook { hook_name: moment.into(), ..hook("/bin/x", &[]) };
            assert!(run(&[late], VendorHooks::Run).is_err(), "{moment}");
        }
    }
}
