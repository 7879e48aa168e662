//! What `--latency` means.
//!
//! ```text
//! settings resolved, preset chosen --PRESETS--> in place of a default only; its origin is then the preset
//! ```

use super::settings::{Origin, Setting};

/// For settings that nobody gave: preset, flag, value. What it does not name stays as it is; `balanced` names
/// nothing.
const PRESETS: &[(&str, &str, &str)] = &[
    ("low", "flush-us", "100"),
    ("throughput", "flush-us", "4000"),
    ("throughput", "block-timeout-ms", "4"),
];

/// Puts the chosen preset's values where there are only defaults.
pub(super) fn apply(resolved: &mut [(&'static Setting, String, Origin)]) {
    let chosen = resolved.iter().find(|(setting, ..)| setting.flag == "latency");
    let Some(chosen) = chosen.map(|(_, text, _)| text.trim().to_owned()) else { return };
    for (setting, text, origin) in
        resolved.iter_mut().filter(|(.., origin)| *origin == Origin::Default)
    {
        let found = PRESETS.iter().find(|(name, flag, _)| *name == chosen && *flag == setting.flag);
        if let Some((name, _, value)) = found {
            *text = (*value).into();
            *origin = Origin::Preset(name);
        }
    }
}

/// Whether there is such a preset.
pub(super) fn check(text: &str) -> Result<(), String> {
    match text {
        "low" | "balanced" | "throughput" => Ok(()),
        _ => Err(format!("{text:?} is neither low, nor balanced, nor throughput")),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Settings};

    #[test]
    fn a_preset_gives_way_to_what_was_given() {
        let of = |args: &[&str], variables: &[(&str, &str)]| {
            let settings = Settings::from_parts(args, variables).unwrap();
            ["flush-us", "block-timeout-ms"].map(|flag| settings.text(flag).to_owned())
        };
        assert_eq!(of(&[], &[]), ["1000", "1"]);
        assert_eq!(of(&["--latency", "balanced"], &[]), ["1000", "1"]);
        assert_eq!(of(&["--latency", "low"], &[]), ["100", "1"]);
        assert_eq!(of(&[], &[("PODTAP_LATENCY", " throughput ")]), ["4000", "4"]);
        let given = [("PODTAP_BLOCK_TIMEOUT_MS", "2")];
        assert_eq!(
            of(&["--latency", "throughput", "--flush-us", "7"], &given),
            ["7", "2"].map(String::from)
        );
        let text = Settings::from_parts(&["--latency", "low"], &[]).unwrap().to_text();
        assert!(text.contains("# --latency low"), "{text}");
    }

    #[test]
    fn a_preset_that_is_none_is_refused() {
        let config = |preset| {
            let settings = Settings::from_parts(&["--latency", preset], &[]).unwrap();
            Config::new(&settings)
        };
        assert_eq!(config("low").unwrap().flush_ns, 100_000);
        let said = config("fast").unwrap_err().to_string();
        assert!(said.starts_with("--latency: ") && said.contains("throughput"), "{said}");
    }
}
