//! PCI functions, and networks of TDs.

use super::Terminal;

#[test]
fn pci_functions_are_listed_with_the_first_reason_and_shown_with_all() {
    assert_eq!(
        Terminal::default().run("pci list"),
        "     ADDRESS         ID  DEVICE           GROUP  OWNER  HEALTH  NOT FOR TDS\r\n\
         0000:00:1f.2  8086:2922  SATA controller      3  none   good    it offers no reset that the host can use\r\n\
         0000:01:00.0  8086:0a54  NVMe drive           5  none   errors\r\n\
         2 functions\r\n"
    );
    assert_eq!(
        Terminal::default().run("pci show 00:1f.2"),
        "function      0000:00:1f.2\r\n\
         device        SATA controller, 8086:2922, class 010601\r\n\
         subsystem     1af4:1100\r\n\
         port          conventional PCI\r\n\
         bridge        -\r\n\
         owner         none\r\n\
         group         3 with 0000:00:1f.0\r\n\
         request ids   0xfa\r\n\
         health        good\r\n\
         resets        none\r\n\
         capabilities  MSI, 0x12\r\n\
         not for TDs   it offers no reset that the host can use\r\n\
         not for TDs   it can't be isolated from 0000:00:1f.0, which the host keeps: it is a bridge of the chipset\r\n\
         \r\n\
         BAR  KIND       ADDRESS   SIZE\r\n\
         \x20 4  ports       0xc040   32 B\r\n\
         \x20 5  memory  0x81004000  4 KiB\r\n"
    );
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let json = terminal.json("pci show 0000:01:00.0");
    assert_eq!(json["address"], "0000:01:00.0", "{json}");
    assert_eq!(json["errors"][0], "completion timeout", "{json}");
    assert_eq!(json["refusals"], serde_json::json!([]), "{json}");
    let json = terminal.json("pci show 01:20.0");
    assert_eq!(json["code"], "invalid-argument", "{json}");
}

#[test]
fn networks_are_listed_and_shown_with_their_cards() {
    assert_eq!(
        Terminal::default().run("net list"),
        "NETWORK  CARDS  FRAMES       BYTES  DROPPED  RATE       PORTS\r\n\
         lan          2     180  263.67 KiB        8  any        open\r\n\
         wan          0       0         0 B        0  100 MiB/s  isolated\r\n"
    );
    let said = Terminal::default().run("net show lan");
    for line in [
        "network  lan\r\nports    open\r\nrate     any\r\n",
        "\r\nsmp         2  02:00:00:00:00:02  trunk  100 MiB/s  ready\r\n",
        "\r\nhello   100  146.48 KiB        90  131.83 KiB          3        0          0        1\r\n",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let said = Terminal::default().run("net show wan");
    assert!(
        said.ends_with("No TD with a card in it has been built.\r\n"),
        "{said}"
    );
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let json = terminal.json("net show lan");
    assert_eq!(json["cards"][1]["port"], "trunk", "{json}");
    assert_eq!(json["cards"][0]["no_buffer"], 3, "{json}");
    let json = terminal.json("net show moon");
    assert_eq!(json["code"], "invalid-argument", "{json}");
}

#[test]
fn a_release_names_the_functions_and_warns_that_nothing_is_erased() {
    let mut terminal = Terminal::default();
    let said = terminal.run("pci release 0000:01:00.0");
    assert!(
        said.starts_with("PCI function 0000:01:00.0, which TD smp had, is released; any TD can have it.\r\nwarning: nothing was erased"),
        "{said}"
    );
    assert_eq!(terminal.machine.released, ["0000:01:00.0"]);
    terminal.send("json on\r");
    let json = terminal.json("pci release 1:0.0");
    assert_eq!(json["code"], "invalid-argument", "{json}");
}
