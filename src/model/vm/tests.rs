//! What is read and shown of VMs.

use super::*;

#[test]
fn readers_see_neither_password_nor_script_environment() {
    let spec = VmSpec {
        password: Some(Secret::new("pw")),
        startup_script: Some(StartupScript {
            script_content: "true".into(),
            env: [("K".to_owned(), Secret::new("hidden"))].into(),
        }),
        ..VmSpec::default()
    };
    let json = serde_json::to_string(&spec.redacted()).unwrap();
    assert!(!json.contains("pw") && !json.contains("hidden"), "{json}");
}

#[test]
fn a_spec_of_an_unknown_future_field_still_decodes() {
    let spec: VmSpec = serde_json::from_str(r#"{"image":"x","frobnicate":1}"#).unwrap();
    assert_eq!(spec.image, "x");
}
