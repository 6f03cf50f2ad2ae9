//! Conversion of a [`Machine`] to QEMU's command line.

use std::path::{Path, PathBuf};

use super::machine::{Boot, Device, Forward, Link, Machine, Vtd, Wire};

/// The emulator, on the search path.
pub const EMULATOR: &str = "qemu-system-x86_64";

/// The VT-d unit. `eim` insists on KVM, so that 32-bit destinations of interrupts need another switch.
const IOMMU: &str = "intel-iommu,intremap=on,x-buggy-eim=on,aw-bits=48";

/// The last byte of the address that QEMU's DHCP server gives the first guest. Later ones get the next addresses.
const FIRST_LEASE: u8 = 15;

/// The files of one run.
pub struct Files {
    /// This machine's own copy of the firmware's variables.
    pub vars: PathBuf,
    /// The output of the debug console (port 0xE9).
    pub debug_console: PathBuf,
    /// The socket of QEMU's monitor.
    pub monitor: PathBuf,
    /// The socket of QEMU's qtest server.
    pub bus: PathBuf,
}

/// Returns QEMU's arguments. The serial port is QEMU's standard input and output.
pub fn arguments(machine: &Machine, files: &Files) -> Vec<String> {
    let mut all = Arguments::default();
    all.add("-nodefaults");
    all.pair("-display", "none");
    let shape = &machine.shape;
    all.pair("-machine", shape.chipset);
    if machine.counts_instructions {
        all.pair("-accel", "tcg,thread=single");
        let shift = Machine::ICOUNT_SHIFT;
        all.pair("-icount", format!("shift={shift},sleep=off"));
    } else {
        all.pair("-accel", "tcg,thread=multi");
    }
    // QEMU wants it before the devices whose accesses it remaps.
    if machine.vtd != Vtd::Absent {
        all.pair("-device", IOMMU);
    }
    let svm = if machine.stub.is_some() {
        ",+svm,+npt"
    } else {
        ""
    };
    all.pair("-cpu", format!("{}{svm}", shape.cpu));
    all.pair(
        "-smp",
        format!(
            "{},sockets={},cores={},threads=1",
            machine.cpus,
            machine.sockets,
            machine.cpus / machine.sockets
        ),
    );
    all.pair("-m", &machine.memory);
    if machine.preallocated {
        all.add("-mem-prealloc");
    }
    all.flash(0, Path::new(shape.firmware.code), "on");
    if shape.firmware.guards_variables {
        all.pair("-global", "driver=cfi.pflash01,property=secure,value=on");
    }
    all.flash(1, &files.vars, "off");
    all.pair("-chardev", "stdio,id=serial,signal=off");
    if !shape.serial.is_empty() {
        all.pair("-device", shape.serial);
    }
    all.pair(
        "-chardev",
        format!("file,id=debug,path={}", escaped(&files.debug_console)),
    );
    all.pair("-device", "isa-debugcon,iobase=0xe9,chardev=debug");
    if let Some(stub) = &machine.stub {
        all.pair(
            "-device",
            format!("pci-testdev,romfile={}", escaped(&stub.rom)),
        );
        for (key, value) in &stub.options {
            let value = value.replace(',', ",,");
            all.pair("-fw_cfg", format!("name=opt/seamstub/{key},string={value}"));
        }
    }
    all.boot(&machine.boot);
    for (slot, device) in (1..).zip(&machine.devices) {
        all.device(slot, device);
    }
    // Behind the disk, which would otherwise be put on a bridge that these arguments create.
    for argument in shape.further {
        all.add(*argument);
    }
    if !machine.reboots {
        all.add("-no-reboot");
    }
    if machine.monitor {
        let path = escaped(&files.monitor);
        all.pair("-monitor", format!("unix:{path},server=on,wait=off"));
    }
    if machine.bus {
        let path = escaped(&files.bus);
        all.pair("-qtest", format!("unix:{path},server=on,wait=off"));
        all.pair("-qtest-log", "/dev/null");
    }
    if machine.gdb {
        all.pair("-gdb", "tcp::1234");
        all.add("-S");
    }
    if let Some(socket) = &machine.debugger {
        let path = escaped(socket);
        all.pair("-gdb", format!("unix:{path},server=on,wait=off"));
    }
    all.0
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, argument: impl Into<String>) {
        self.0.push(argument.into());
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.add(name);
        self.add(value);
    }

    fn flash(&mut self, unit: u32, file: &Path, read_only: &str) {
        let file = escaped(file);
        self.pair(
            "-drive",
            format!("if=pflash,unit={unit},format=raw,readonly={read_only},file={file}"),
        );
    }

    /// Adds a device behind a root port of its own in `slot`.
    fn device(&mut self, slot: usize, device: &Device) {
        self.pair(
            "-device",
            format!("pcie-root-port,id=port{slot},slot={slot},chassis={slot}"),
        );
        let name = match device {
            Device::Nvme(image) => self.nvme(slot, &format!("file={}", escaped(image))),
            Device::Snapshot(image) => {
                self.nvme(slot, &format!("file={},snapshot=on", escaped(image)))
            }
            Device::Unreadable(image) => self.nvme(slot, &unreadable(image)),
            Device::Net => self.net(slot, ""),
            Device::NetWithSsh(Forward { port, isolated }) => {
                let restrict = if *isolated { ",restrict=on" } else { "" };
                let forward = format!("{restrict},hostfwd=tcp:127.0.0.1:{port}-:22");
                self.net(slot, &forward)
            }
            Device::NetWithGuests(ports) => {
                let forward =
                    |(guest, port)| format!(",hostfwd=tcp:127.0.0.1:{port}-10.0.2.{guest}:22");
                let forwards: Vec<_> = (FIRST_LEASE..).zip(ports).map(forward).collect();
                self.net(slot, &forwards.concat())
            }
            Device::Link(link) => self.link(slot, link),
            // Without the mask, it reaches 256 MiB.
            Device::Edu => "edu,dma_mask=0xffffffffffff".to_owned(),
        };
        self.pair("-device", format!("{name},bus=port{slot}"));
    }

    /// Adds the medium of an NVMe drive. Returns the drive.
    fn nvme(&mut self, slot: usize, medium: &str) -> String {
        self.pair(
            "-drive",
            format!("if=none,id=nvme{slot},format=raw,{medium}"),
        );
        format!("nvme,drive=nvme{slot},serial=seamark{slot}")
    }

    /// Adds a user network. Returns the card on it.
    fn net(&mut self, slot: usize, more: &str) -> String {
        self.pair("-netdev", format!("user,id=net{slot}{more}"));
        card(slot)
    }

    /// Adds one end of a link. Returns the card on it.
    fn link(&mut self, slot: usize, link: &Link) -> String {
        let is_server = if link.is_first { "on" } else { "off" };
        let socket = escaped(&link.socket);
        self.pair(
            "-netdev",
            format!("stream,id=net{slot},server={is_server},addr.type=unix,addr.path={socket}"),
        );
        format!("{},mac={}", card(slot), link.mac)
    }

    fn boot(&mut self, boot: &Boot) {
        match boot {
            Boot::Devices => {}
            Boot::Disk(image) => {
                let image = escaped(image);
                self.pair(
                    "-drive",
                    format!("if=none,id=disk,format=raw,readonly=on,file={image}"),
                );
                self.pair("-device", "virtio-blk-pci,drive=disk,bootindex=1");
            }
            Boot::Network { directory, program } => {
                let directory = escaped(directory);
                self.pair(
                    "-netdev",
                    format!("user,id=net,tftp={directory},bootfile={program}"),
                );
                self.pair("-device", "virtio-net-pci,netdev=net,romfile=,bootindex=1");
            }
            Boot::Link(wire) => self.wire(wire),
            Boot::Linux {
                kernel,
                command_line,
            } => {
                self.pair("-kernel", kernel.display().to_string());
                self.pair("-append", command_line);
            }
        }
    }
}

impl Arguments {
    fn wire(&mut self, wire: &Wire) {
        let interface = &wire.interface;
        self.pair(
            "-netdev",
            format!("tap,id=net,ifname={interface},script=no,downscript=no,vnet_hdr=off"),
        );
        self.pair(
            "-device",
            format!(
                "virtio-net-pci,netdev=net,mac={},romfile=,bootindex=1",
                wire.mac
            ),
        );
        let capture = escaped(&wire.capture);
        self.pair(
            "-object",
            format!("filter-dump,id=capture,netdev=net,file={capture}"),
        );
        if wire.http {
            // OVMF's options that take PXE out of the boot order.
            for version in ["IPv4", "IPv6"] {
                self.pair(
                    "-fw_cfg",
                    format!("name=opt/org.tianocore/{version}PXESupport,string=n"),
                );
            }
        }
    }
}

/// Returns the network card at the network of this slot.
fn card(slot: usize) -> String {
    format!("virtio-net-pci,netdev=net{slot},romfile=,iommu_platform=on,disable-legacy=on")
}

/// Returns the options of a medium of the image's size whose reads fail with EIO.
fn unreadable(image: &Path) -> String {
    let fails = "file.inject-error.0.event=read_aio,file.inject-error.0.errno=5";
    format!(
        "file.driver=blkdebug,{fails},file.image.driver=file,file.image.filename={}",
        escaped(image)
    )
}

/// Escapes a path for QEMU's option lists: a comma in it is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Stub;

    fn line(machine: &Machine) -> String {
        let files = Files {
            vars: "/run/vars.fd".into(),
            debug_console: "/run/debug".into(),
            monitor: "/run/monitor".into(),
            bus: "/run/bus".into(),
        };
        arguments(machine, &files).join(" ")
    }

    fn disk() -> Boot {
        Boot::Disk("/run/disk.img".into())
    }

    #[test]
    fn cpus_are_spread_over_the_sockets() {
        let line = line(&Machine::new(disk(), None).with_cpus(16, 4));
        assert!(
            line.contains("-smp 16,sockets=4,cores=4,threads=1"),
            "{line}"
        );
    }

    #[test]
    fn each_device_is_behind_a_root_port_of_its_own() {
        let machine = Machine::new(disk(), None)
            .with_iommu()
            .with_device(Device::Nvme("/run/a,b.img".into()))
            .with_device(Device::Edu);
        let line = line(&machine);
        assert!(
            line.contains("file=/run/a,,b.img -device nvme,drive=nvme1,serial=seamark1,bus=port1"),
            "{line}"
        );
        assert!(
            line.contains("-device edu,dma_mask=0xffffffffffff,bus=port2"),
            "{line}"
        );
        let unit = line.find("intel-iommu").expect("a unit");
        assert!(
            line.find("pcie-root-port").is_some_and(|port| unit < port),
            "{line}"
        );
    }

    #[test]
    fn a_snapshot_is_not_written_to_and_an_isolated_network_has_one_way_in() {
        let machine = Machine::new(Boot::Devices, None)
            .with_device(Device::Snapshot("/run/a.img".into()))
            .with_device(Device::NetWithSsh(Forward {
                port: 2222,
                isolated: true,
            }));
        let line = line(&machine);
        assert!(
            line.contains("format=raw,file=/run/a.img,snapshot=on -device nvme,drive=nvme1"),
            "{line}"
        );
        assert!(
            line.contains("user,id=net2,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22"),
            "{line}"
        );
    }

    #[test]
    fn guests_behind_one_card_and_machines_on_a_link_have_ways_of_their_own() {
        let end = |is_first, mac| {
            Device::Link(Link {
                socket: "/run/a,b".into(),
                is_first,
                mac,
            })
        };
        let machine = Machine::new(Boot::Devices, None)
            .with_device(Device::NetWithGuests(vec![2222, 3333]))
            .with_device(end(true, "02:00:00:00:00:01"))
            .with_device(end(false, "02:00:00:00:00:02"));
        let line = line(&machine);
        for part in [
            "user,id=net1,hostfwd=tcp:127.0.0.1:2222-10.0.2.15:22,hostfwd=tcp:127.0.0.1:3333-10.0.2.16:22",
            "stream,id=net2,server=on,addr.type=unix,addr.path=/run/a,,b",
            "disable-legacy=on,mac=02:00:00:00:00:01,bus=port2",
            "stream,id=net3,server=off,addr.type=unix,addr.path=/run/a,,b",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn without_the_stub_there_is_no_svm_and_no_rom() {
        let line = line(&Machine::new(disk(), None));
        assert!(!line.contains("svm") && !line.contains("romfile"), "{line}");
    }

    #[test]
    fn the_stubs_options_go_through_fw_cfg() {
        let stub = Stub {
            rom: "/run/a,b.rom".into(),
            options: Vec::new(),
        };
        let machine = Machine::new(disk(), Some(stub)).with_stub_option("tdx", "off");
        let line = line(&machine);
        assert!(line.contains("romfile=/run/a,,b.rom"), "{line}");
        assert!(
            line.contains("-fw_cfg name=opt/seamstub/tdx,string=off"),
            "{line}"
        );
    }

    #[test]
    fn the_network_card_has_no_rom_of_its_own() {
        let boot = Boot::Network {
            directory: "/run/tftp".into(),
            program: "seamark.efi".into(),
        };
        let line = line(&Machine::new(boot, None));
        assert!(
            line.contains("tftp=/run/tftp,bootfile=seamark.efi"),
            "{line}"
        );
        assert!(
            line.contains("virtio-net-pci,netdev=net,romfile=,"),
            "{line}"
        );
    }

    #[test]
    fn a_machine_on_a_link_boots_by_http_alone_if_asked() {
        let wire = Wire {
            interface: "link1".to_owned(),
            mac: "52:54:00:00:00:01".to_owned(),
            http: false,
            capture: "/run/a,b.pcap".into(),
        };
        let http = Wire {
            http: true,
            ..wire.clone()
        };
        let pxe = line(&Machine::new(Boot::Link(wire), None));
        assert!(pxe.contains("ifname=link1,script=no"), "{pxe}");
        assert!(pxe.contains("mac=52:54:00:00:00:01,romfile=,"), "{pxe}");
        assert!(pxe.contains("netdev=net,file=/run/a,,b.pcap"), "{pxe}");
        assert!(!pxe.contains("PXESupport"), "{pxe}");
        let http = line(&Machine::new(Boot::Link(http), None));
        assert!(http.contains("IPv4PXESupport,string=n"), "{http}");
    }
}
