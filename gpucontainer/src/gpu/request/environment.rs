//! What images ask for by environment variables, as NVIDIA's container toolkit has taught them.

use super::extras::MAX_CHANNEL;
use super::{Channels, DriverCapability, DriverExtra, GpuRequest, Which};
use crate::error::{Context, Error, ErrorKind, Result};

/// Fills in what `request` leaves to the image.
pub(super) fn resolve(request: &GpuRequest, environment: &[(String, String)]) -> Result<GpuRequest> {
    let variable =
        |wanted: &str| environment.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    // Images of the time before NVIDIA_VISIBLE_DEVICES say which CUDA they have, and no requirement.
    let old = variable("CUDA_VERSION").is_some() && variable("NVIDIA_REQUIRE_CUDA").is_none();
    let mut resolved = request.clone();
    if request.which == Which::AsImageSays {
        const NAME: &str = "NVIDIA_VISIBLE_DEVICES";
        resolved.which = match variable(NAME) {
            Some(list) => list.parse::<GpuRequest>().with_context(|| format!("read {NAME}={list:?}"))?.which,
            None if old => Which::All,
            None => Which::None,
        };
        for extra in DriverExtra::ALL.into_iter().filter(|extra| extra.right().is_none()) {
            if variable(extra.variable()) == Some("enabled") {
                resolved.extras.parts.insert(extra);
            }
        }
        if resolved.which != Which::None {
            rights(&resolved, environment)?;
        }
        if let Some(list) = variable("NVIDIA_IMEX_CHANNELS") {
            resolved.extras.channels = channels(list)?;
        }
    }
    if resolved.capabilities.is_none() {
        const NAME: &str = "NVIDIA_DRIVER_CAPABILITIES";
        resolved.capabilities = match variable(NAME) {
            Some(list) => Some(DriverCapability::parse_list(list).with_context(|| format!("read {NAME}={list:?}"))?),
            None if old => Some(DriverCapability::ALL.into()),
            None => None,
        };
    }
    Ok(resolved)
}

/// Fails if the image asks for a right that the caller did not give.
fn rights(request: &GpuRequest, environment: &[(String, String)]) -> Result<()> {
    let Some((extra, right, value)) = wanted_rights(request, environment).next() else { return Ok(()) };
    let name = extra.variable();
    if value != "all" {
        let why = format!("{name}={value:?} is neither all nor void: the driver gives this right as a whole");
        return Err(Error::new(ErrorKind::InvalidArgument, why));
    }
    let why = format!("{name}=all asks for a right that no image gets by asking: the extra mig-{right} gives it");
    Err(Error::new(ErrorKind::PermissionDenied, why))
}

/// The rights that the environment asks for and the request does not, in words.
pub(in crate::gpu) fn rights_left_out(request: &GpuRequest, environment: &[(String, String)]) -> Vec<String> {
    let words = |(extra, right, value): (DriverExtra, &str, &str)| {
        format!("{}={value}: the request does not give the right mig-{right}", extra.variable())
    };
    wanted_rights(request, environment).map(words).collect()
}

fn wanted_rights<'a>(
    request: &GpuRequest,
    environment: &'a [(String, String)],
) -> impl Iterator<Item = (DriverExtra, &'static str, &'a str)> {
    let missing = DriverExtra::ALL.into_iter().filter(|extra| !request.extras.parts.contains(extra));
    missing.filter_map(|extra| {
        let (_, value) = environment.iter().rev().find(|(name, _)| name == extra.variable())?;
        let value = value.trim();
        (!matches!(value, "" | "void" | "none")).then_some((extra, extra.right()?, value))
    })
}

fn channels(list: &str) -> Result<Channels> {
    let elements = || list.split(',').map(str::trim).filter(|element| !element.is_empty());
    if elements().any(|element| element == "all") {
        return Ok(Channels::All);
    }
    let number = |element: &str| element.parse::<u32>().ok().filter(|number| *number <= MAX_CHANNEL);
    let numbers: Option<_> = elements().map(number).collect();
    numbers.map(Channels::Numbered).ok_or_else(|| {
        let why = format!("NVIDIA_IMEX_CHANNELS={list:?} is neither all nor numbers from 0 to {MAX_CHANNEL}");
        Error::new(ErrorKind::InvalidArgument, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &GpuRequest, variables: &[(&str, &str)]) -> Result<GpuRequest> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        request.for_environment(&variables.iter().map(own).collect::<Vec<_>>())
    }

    #[test]
    fn an_image_names_its_gpus() {
        let which = |variables: &[(&str, &str)]| ask(&GpuRequest::as_image_says(), variables).unwrap().which;
        assert_eq!(which(&[]), Which::None);
        assert_eq!(which(&[("NVIDIA_VISIBLE_DEVICES", "")]), Which::None);
        assert_eq!(which(&[("NVIDIA_VISIBLE_DEVICES", "void")]), Which::None);
        assert_eq!(which(&[("NVIDIA_VISIBLE_DEVICES", "none")]), Which::DriverOnly);
        assert_eq!(which(&[("NVIDIA_VISIBLE_DEVICES", "all")]), Which::All);
        assert_eq!(which(&[("NVIDIA_VISIBLE_DEVICES", "all"), ("NVIDIA_VISIBLE_DEVICES", "void")]), Which::None);
        assert_eq!(which(&[("CUDA_VERSION", "8.0.61")]), Which::All, "an image of old");
        assert_eq!(which(&[("CUDA_VERSION", "12.4"), ("NVIDIA_REQUIRE_CUDA", "cuda>=12.4")]), Which::None);
        assert_eq!(which(&[("CUDA_VERSION", "8.0"), ("NVIDIA_VISIBLE_DEVICES", "void")]), Which::None);
        let Which::Named(names) = which(&[("NVIDIA_VISIBLE_DEVICES", "0, 1,,0")]) else { panic!("names") };
        assert_eq!(names.len(), 2, "no hole, no double");
        let error = ask(&GpuRequest::as_image_says(), &[("NVIDIA_VISIBLE_DEVICES", "everything")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("NVIDIA_VISIBLE_DEVICES=\"everything\""), "{error}");
        let one = ask(&GpuRequest::count(1), &[("NVIDIA_VISIBLE_DEVICES", "all")]).unwrap();
        assert_eq!(one.which, Which::Count(1), "the caller's word stands");
    }

    #[test]
    fn an_image_names_the_parts_of_the_driver() {
        use DriverCapability::{Compute, Graphics, Utility, Video};
        let wants = |request: GpuRequest, variables: &[(&str, &str)]| {
            let resolved = ask(&request, variables).unwrap();
            [Compute, Utility, Graphics, Video].map(|capability| resolved.wants(capability))
        };
        let list = [("NVIDIA_DRIVER_CAPABILITIES", "graphics, utility")];
        assert_eq!(wants(GpuRequest::count(1), &[]), [true, true, false, false]);
        assert_eq!(wants(GpuRequest::count(1), &[("NVIDIA_DRIVER_CAPABILITIES", "")]), [true, true, false, false]);
        assert_eq!(wants(GpuRequest::count(1), &list), [false, true, true, false]);
        assert_eq!(wants(GpuRequest::count(1).capabilities([Compute]), &list), [true, false, false, false]);
        assert_eq!(wants(GpuRequest::as_image_says(), &[("CUDA_VERSION", "8.0")]), [true; 4]);
        let error = ask(&GpuRequest::count(1), &[("NVIDIA_DRIVER_CAPABILITIES", "compute,warp")]).unwrap_err();
        assert!(error.to_string().contains("NVIDIA_DRIVER_CAPABILITIES") && error.to_string().contains("warp"));
    }

    #[test]
    fn an_image_gets_no_right_by_asking() {
        use DriverExtra::{MigConfig, MigMonitor};
        let (config, monitor) = (("NVIDIA_MIG_CONFIG_DEVICES", "all"), ("NVIDIA_MIG_MONITOR_DEVICES", "all"));
        let gpus = ("NVIDIA_VISIBLE_DEVICES", "all");
        let image = GpuRequest::as_image_says();
        let both = image.clone().extras([MigConfig, MigMonitor]);
        for (variable, extra, name) in [(config, MigConfig, "mig-config"), (monitor, MigMonitor, "mig-monitor")] {
            let error = ask(&image, &[gpus, variable]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            assert!(error.to_string().contains(variable.0) && error.to_string().contains(name), "{error}");
            assert_eq!(ask(&image.clone().extras([extra]), &[gpus, variable]).unwrap().extras.parts, [extra].into());
            for nothing in ["", "void", "none"] {
                assert!(ask(&image, &[gpus, (variable.0, nothing)]).unwrap().extras.parts.is_empty());
            }
            let error = ask(&image, &[gpus, (variable.0, "0,1")]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            let error = ask(&image, &[gpus, (variable.0, "enabled")]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert_eq!(ask(&image, &[variable]).unwrap().which, Which::None, "without GPUs there is no right");
            // The caller says which GPUs: what the image asks for beside them counts for nothing, and is said.
            let own = ask(&GpuRequest::count(1), &[variable]).unwrap();
            let environment = [(variable.0.to_owned(), variable.1.to_owned())];
            let [left_out] = &rights_left_out(&own, &environment)[..] else { panic!("{own:?}") };
            assert!(own.extras.parts.is_empty() && left_out.contains(variable.0), "{left_out}");
            assert!(rights_left_out(&both, &environment).is_empty());
        }
        assert_eq!(ask(&both, &[gpus]).unwrap().extras.parts.len(), 2, "the caller need not ask the image");
    }

    #[test]
    fn an_image_asks_for_extras() {
        let image = GpuRequest::as_image_says();
        let extras = |variables: &[(&str, &str)]| ask(&image, variables).unwrap().extras;
        let some = extras(&[("NVIDIA_GDS", "enabled"), ("NVIDIA_MOFED", "yes"), ("NVIDIA_IMEX_CHANNELS", "0,5")]);
        assert_eq!(some.parts, [DriverExtra::Gds].into());
        assert_eq!(some.channels, Channels::Numbered([0, 5].into()));
        assert_eq!(extras(&[("NVIDIA_IMEX_CHANNELS", "0,all")]).channels, Channels::All);
        for bad in ["x", "-1", "1048576", "0;1"] {
            assert!(ask(&image, &[("NVIDIA_IMEX_CHANNELS", bad)]).is_err(), "{bad}");
        }
        let own = ask(&GpuRequest::count(1), &[("NVIDIA_GDS", "enabled")]).unwrap();
        assert!(own.extras.parts.is_empty(), "an image gets nothing that the caller left to nobody");
    }
}
