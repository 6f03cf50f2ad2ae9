//! Tests of `report`.

use serde_json::Value;

use super::Terminal;

#[test]
fn a_report_is_one_object_with_or_without_json_mode() {
    let mut terminal = Terminal::default();
    let plain = terminal.run("report");
    assert_eq!(plain.trim_end().lines().count(), 1);
    let plain: Value = serde_json::from_str(plain.trim_end()).unwrap();
    terminal.send("json on\r");
    let json = terminal.json("report");
    for name in [
        "build", "boot", "platform", "cpus", "memory", "tdx", "tds", "log",
    ] {
        assert!(!plain[name].is_null(), "{name}");
        assert_eq!(plain[name], json[name], "{name}");
    }
    assert_eq!(json["cpus"].as_array().unwrap().len(), 4);
    assert!(!json["log"].as_array().unwrap().is_empty());
}

#[test]
fn a_register_that_the_cpu_lacks_is_absent() {
    let report = Terminal::default().run("report");
    let report: Value = serde_json::from_str(report.trim_end()).unwrap();
    let register = &report["platform"]["msrs"][0];
    assert_eq!(register["number"], "0x982");
    assert!(register.get("value").is_some_and(Value::is_null));
}

#[test]
fn a_machine_without_tdx_is_reported_too() {
    let mut terminal = Terminal::default();
    terminal.machine.without_tdx = true;
    let report = terminal.run("report");
    let report: Value = serde_json::from_str(report.trim_end()).unwrap();
    assert_eq!(report["tds"][0]["name"], "hello");
    assert_eq!(report["tdx"]["state"], "unavailable");
}
