#!/bin/sh
# Installs the Fleetban agent on this host and joins it to the fleet of the control plane that served this script.
#
#   curl -fsSL https://CONTROL-PLANE/install.sh | sh
#   curl -fsSL https://CONTROL-PLANE/install.sh | sh -s -- [--yes] [--no-start] [--token-file FILE]
#
# The join token is asked for at the terminal, or taken from FLEETBAN_JOIN_TOKEN or --token-file; it never stands in an
# argument list. Run it again to upgrade: the host keeps its identity. Nothing runs before the whole of it has arrived:
# everything is a function, and the last line calls it, in braces, for a part of it to be no command either.

main() {
	set -eu
	umask 022
	# Who became root by su has the former PATH, on Debian without the folders of useradd and nft.
	PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	export PATH

	# Filled in by the control plane.
	url='@URL@'
	pin='@PIN@' # of the control plane's key, where its certificate is not publicly trusted
	sha256_amd64='@SHA256_AMD64@'
	sha256_arm64='@SHA256_ARM64@'
	sha256_agent_service='@SHA256_AGENT_SERVICE@'
	sha256_helper_service='@SHA256_HELPER_SERVICE@'
	sha256_policy='@SHA256_POLICY@'

	bin=/usr/local/bin/fleetban-agent
	state=/var/lib/fleetban-agent
	helper_state=/var/lib/fleetban-helper
	config=/etc/fleetban
	units=/etc/systemd/system
	user=fleetban

	yes=false
	start=true
	token_file=
	while [ $# -gt 0 ]; do
		case $1 in
		--yes | -y) yes=true ;;
		--no-start) start=false ;;
		--token-file)
			[ $# -gt 1 ] || fail "--token-file needs a file" "write --token-file FILE"
			token_file=$2
			shift
			;;
		--token-file=*) token_file=${1#*=} ;;
		--help | -h)
			say "Options: --yes (don't ask), --no-start (install and enrol only), --token-file FILE"
			return 0
			;;
		fbj_*) fail "a join token in the argument list can be read by every user of this machine" \
			"revoke it (fleetban join-token revoke), and give a new one by FLEETBAN_JOIN_TOKEN or --token-file" ;;
		*) fail "unknown option $1" "see --help" ;;
		esac
		shift
	done
	# Not for the programs that this script starts.
	token=${FLEETBAN_JOIN_TOKEN-}
	unset FLEETBAN_JOIN_TOKEN

	check_system
	systemd=false
	if [ -d /run/systemd/system ] && have systemctl; then systemd=true; fi
	enrolled=false
	if [ -e "$state/identity.json" ]; then enrolled=true; fi
	look_around
	ask

	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	chmod 700 "$work"

	install_files
	enrol
	if $start && $systemd; then start_units; fi
	report
}

say() { printf '%s\n' "$*"; }
warn() { printf 'note: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
fail() {
	printf 'fleetban: %s\n' "$1" >&2
	[ -z "${2-}" ] || printf '  To mend it: %s.\n' "$2" >&2
	exit 1
}

check_system() {
	[ "$(uname -s)" = Linux ] || fail "this is $(uname -s), and the agent runs on Linux" "install it on a Linux host"
	[ "$(id -u)" = 0 ] || fail "this needs root: it installs a service that sets firewall rules" "run the same line with | sudo sh at its end"
	machine=$(uname -m)
	case $machine in
	x86_64 | amd64) arch=amd64 sha256_agent=$sha256_amd64 ;;
	aarch64 | arm64) arch=arm64 sha256_agent=$sha256_arm64 ;;
	*) fail "there is no agent for $machine" "use a host of x86_64 or aarch64" ;;
	esac
	[ -n "$sha256_agent" ] || fail "this control plane was built without the agent for $arch" \
		"on the machine where it is built: make build, then start it anew"
	for tool in curl sha256sum install mktemp; do
		have "$tool" || fail "$tool is missing" "install it with this system's package manager (Debian: apt-get install curl coreutils)"
	done
}

# look_around says what is there before anything is changed.
look_around() {
	say "Fleetban agent ($arch) from $url"
	if have fail2ban-client; then
		version=$(fail2ban-client --version 2>/dev/null | sed -n '1s/^[Ff]ail2[Bb]an v\{0,1\}\([0-9][0-9.]*\).*/\1/p')
		if jails=$(fail2ban-client status 2>/dev/null); then
			jails=$(printf '%s\n' "$jails" | sed -n 's/.*Jail list:[[:space:]]*//p')
			say "  fail2ban    ${version:-unknown version}, running; jails: ${jails:-none}"
			[ -n "$jails" ] || warn "no jail is active, so this host will report no bans; it enforces those of others"
		else
			say "  fail2ban    ${version:-unknown version}, not running"
			warn "start fail2ban, else this host only enforces the bans of others"
		fi
	else
		say "  fail2ban    not found"
		warn "without fail2ban this host only enforces the bans of others; later: apt-get install fail2ban"
	fi
	if [ -e /proc/sys/net/netfilter ] || have nft || grep -q '^nf_tables ' /proc/modules 2>/dev/null; then
		say "  nftables    there"
	else
		say "  nftables    not found in this kernel"
		warn "bans can't be enforced here until the kernel has nf_tables (modprobe nf_tables)"
	fi
	if [ -d /sys/class/net/docker0 ] || have docker || have podman; then
		say "  containers  found; fleet bans cover their published ports too (but not macvlan)"
	fi
	if $systemd; then say "  systemd     there"; else say "  systemd     not in charge here: you will be told how to run the agent"; fi
}

terminal() { (: </dev/tty >/dev/tty) 2>/dev/null; }

# ask asks for consent and, unless it was given, for the join token: at the terminal, for standard input is this script.
ask() {
	if ! $yes && terminal; then
		printf 'Install it? [Y/n] ' >/dev/tty
		IFS= read -r answer </dev/tty || answer=n
		case $answer in [Nn]*) fail "nothing was changed" ;; esac
	fi
	if $enrolled; then return 0; fi
	if [ -n "$token_file" ]; then
		[ -r "$token_file" ] || fail "the token file $token_file can't be read" "check its name"
		IFS= read -r token <"$token_file" || [ -n "$token" ] || fail "the token file $token_file is empty" "put the join token on its first line"
	fi
	if [ -z "$token" ]; then
		terminal || fail "there is no join token and no terminal to ask at" \
			"set FLEETBAN_JOIN_TOKEN or give --token-file FILE (fleetban join-token create makes a token)"
		# Silent before it asks, for who pastes is fast.
		settings=$(stty -g </dev/tty)
		trap 'stty "$settings" </dev/tty; exit 130' INT TERM
		stty -echo </dev/tty
		printf 'Join token (not shown): ' >/dev/tty
		IFS= read -r token </dev/tty || token=
		stty "$settings" </dev/tty
		trap - INT TERM
		printf '\n' >/dev/tty
	fi
	case $token in
	fbj_*) ;;
	fbt_*) fail "this is an API token, which lets people in, and no join token" "revoke it if others saw it; make a join token: fleetban join-token create" ;;
	*) fail "this is no join token: one begins with fbj_" "copy the whole of it" ;;
	esac
}

# fetch PATH FILE SHA256 downloads from the control plane, which must have the pinned key, and checks what came.
fetch() {
	set -- "$url$1" "$2" "$3"
	# shellcheck disable=SC2086 # no protocol is two words
	if [ -n "$pin" ]; then
		curl -fsS --retry 3 --connect-timeout 15 -k --pinnedpubkey "$pin" -o "$2" "$1" || fail "$1 can't be downloaded" "see the line above"
	else
		curl -fsS --retry 3 --connect-timeout 15 -o "$2" "$1" || fail "$1 can't be downloaded" "see the line above"
	fi
	printf '%s  %s\n' "$3" "$2" | sha256sum -c - >/dev/null 2>&1 ||
		fail "$1 is not what this script was made for: its SHA-256 differs" "run the line anew: the control plane was perhaps upgraded meanwhile"
}

# put FILE TARGET MODE replaces a file whole or not at all.
put() {
	install -m "$3" "$1" "$2.new"
	mv -f "$2.new" "$2"
}

install_files() {
	fetch "/agent/linux-$arch" "$work/agent" "$sha256_agent"
	chmod 755 "$work/agent"
	"$work/agent" version >/dev/null 2>&1 ||
		fail "the agent doesn't start here" "see whether $work is mounted noexec; set TMPDIR to a folder that isn't"

	if ! id "$user" >/dev/null 2>&1; then
		if have useradd; then
			useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$user"
		elif have adduser; then # busybox
			addgroup -S "$user" 2>/dev/null || true
			adduser -S -D -H -h "$state" -s /sbin/nologin -G "$user" "$user"
		else
			fail "there is neither useradd nor adduser" "make a system user and group named $user"
		fi
	fi
	mkdir -p "$(dirname "$bin")"
	install -d -m 755 "$config"
	install -d -m 700 -o "$user" -g "$user" "$state"
	install -d -m 700 "$helper_state"
	put "$work/agent" "$bin" 755
	if [ ! -e "$config/policy.toml" ]; then
		fetch /agent/policy.toml "$work/policy.toml" "$sha256_policy"
		put "$work/policy.toml" "$config/policy.toml" 644
	fi
	if $systemd; then
		fetch /agent/fleetban-agent.service "$work/agent.service" "$sha256_agent_service"
		fetch /agent/fleetban-helper.service "$work/helper.service" "$sha256_helper_service"
		put "$work/agent.service" "$units/fleetban-agent.service" 644
		put "$work/helper.service" "$units/fleetban-helper.service" 644
	fi
}

# enrol hands the token over in a file that only root can read. A host that is enrolled needs none and keeps its identity;
# the agent says so if it is of another fleet.
enrol() {
	(
		umask 077
		printf '%s\n' "$token" >"$work/token"
	)
	token=
	set -- enroll --url "$url" --token-file "$work/token"
	if [ -n "$pin" ]; then set -- "$@" --pin "$pin"; fi
	say
	"$bin" "$@" </dev/null || fail "this host is not enrolled" "see above, then run the same line again: what is installed stays and does nothing"
	rm -f "$work/token"
}

start_units() {
	systemctl daemon-reload
	systemctl enable --quiet fleetban-helper.service fleetban-agent.service
	# Restart, for an older release may be running. The kernel keeps its rules meanwhile.
	systemctl restart fleetban-helper.service fleetban-agent.service ||
		fail "the agent doesn't start" "see journalctl -u fleetban-helper -u fleetban-agent"
	for unit in fleetban-helper fleetban-agent; do
		systemctl --quiet is-active "$unit.service" || fail "$unit stopped at once" "see journalctl -u $unit"
	done
}

# await_stream gives the two halves ten seconds to find each other and the control plane: until then doctor would complain
# of what mends itself.
await_stream() {
	tries=10
	while [ $tries -gt 0 ] && "$bin" doctor -o json 2>/dev/null | grep -qE '"(not-connected|agent-away|helper-away|helper-refuses-agent)"'; do
		sleep 1
		tries=$((tries - 1))
	done
}

report() {
	say
	say "Installed $bin."
	if $start && $systemd; then
		await_stream
		# What is inert, and what mends it.
		"$bin" doctor || true
		say
		say "Look:       fleetban-agent status"
	elif $systemd; then
		say "Start:      systemctl enable --now fleetban-helper fleetban-agent"
	else
		say "No systemd here: keep these two running, by whatever supervises services on this machine:"
		say "              install -d -m 755 /run/fleetban-helper"
		say "              install -d -m 755 -o $user -g $user /run/fleetban-agent"
		say "              $bin helper        as root"
		say "              $bin run           as the user $user"
		say "Look:       fleetban-agent status, fleetban-agent doctor"
	fi
	say "Policy:     $config/policy.toml says what the fleet may do on this host"
	say "Turn off:   fleetban-agent off          (works without the control plane; on again: fleetban-agent on)"
	say "Let one in: fleetban-agent allow ADDRESS"
	say "Undo:       fleetban-agent uninstall    (leaves fail2ban as it was)"
}

{ main "$@"; }
