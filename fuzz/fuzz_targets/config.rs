//! The config: any text is either a config that reads back the same, or errors that can be shown.
#![no_main]

use softgate::config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match Config::parse(text, "fuzz.toml") {
        Ok(config) => assert_eq!(Config::parse(&config.to_toml(), "saved.toml").as_ref(), Ok(&config)),
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
});
