# What Debian's installer asks or does after the packages are there. mmdebstrap runs this with the system's directory as
# $1. Capitals between percent signs are replaced before.
set -eu
cd "$1"

# One user. The password is for the console; ssh takes the key alone.
chroot . useradd --create-home --shell /bin/bash --groups sudo debian
echo debian:debian | chroot . chpasswd
mkdir -m 700 home/debian/.ssh
echo "%KEY%" >home/debian/.ssh/authorized_keys
chroot . chown -R debian:debian /home/debian/.ssh
echo "debian ALL=(ALL) NOPASSWD: ALL" >etc/sudoers.d/debian
chmod 440 etc/sudoers.d/debian
echo "PasswordAuthentication no" >etc/ssh/sshd_config.d/keys.conf

# The disk.
mkdir -p boot/efi
cat >etc/fstab <<END
UUID=%ROOT% / ext4 errors=remount-ro 0 1
UUID=%ESP% /boot/efi vfat umask=0077 0 1
END

# The network.
echo debian >etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n' >etc/hosts
printf '[Match]\nType=ether\n\n[Network]\nDHCP=yes\n' >etc/systemd/network/wired.network
chroot . systemctl --quiet enable systemd-networkd
ln -sf ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf

# The identity of this one machine, so that no boot is the first.
rm -f etc/machine-id
chroot . systemd-machine-id-setup >/dev/null
touch -r usr etc/.updated var/.updated

# Nobody waits for the network, nothing needs a screen, and no work is done by the clock.
chroot . systemctl --quiet disable systemd-networkd-wait-online getty@tty1 grub-common \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap fstrim.timer

# GRUB on the serial port. Linux counts the timer's ticks during a delay, and panics if an emulated machine on a busy
# computer has lost some.
mkdir -p boot/grub/x86_64-efi
cp usr/lib/grub/x86_64-efi/*.mod usr/lib/grub/x86_64-efi/*.lst boot/grub/x86_64-efi/
chroot . grub-editenv /boot/grub/grubenv create
cat >etc/default/grub.d/serial.cfg <<END
GRUB_TIMEOUT=1
GRUB_CMDLINE_LINUX="console=ttyS0 no_timer_check"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
END

# The disk does not exist yet: grub-probe is replaced by its answers there, on a machine's only NVMe drive.
mv usr/sbin/grub-probe usr/sbin/grub-probe.real
cat >usr/sbin/grub-probe <<'END'
#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
    --target=*) target=${1#--target=} ;;
    -t) target=$2 ;;
    esac
    shift
done
case "$target" in
device) echo /dev/nvme0n1p2 ;;
fs) echo ext2 ;;
fs_uuid) echo %ROOT% ;;
partmap) echo gpt ;;
esac
END
chmod +x usr/sbin/grub-probe
mkdir -p dev/disk/by-uuid
touch dev/disk/by-uuid/%ROOT%
chroot . update-grub
rm -r dev/disk
mv usr/sbin/grub-probe.real usr/sbin/grub-probe
