// Package promotion decides which observed bans become fleet bans. It is pure policy: what it needs to know is in its
// arguments, and what it decides is carried out by package sets, which also checks the allowlist, the fleet's own
// addresses and the two-host rule in the script that writes.
package promotion

import (
	"net/netip"
	"strings"
	"time"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Class is how many hosts must see an address before the fleet bans it.
type Class uint8

// The classes.
const (
	// ClassLocal jails stay on their host: what they watch can be forged (UDP) or isn't known.
	ClassLocal Class = iota
	// ClassOneHost: a login was tried over TCP with a whole handshake; one host's word suffices.
	ClassOneHost
	// ClassTwoHosts: web jails misfire on ordinary visitors; two hosts within Window have to agree.
	ClassTwoHosts
)

const (
	// Window is that of the two-host rule.
	Window = 10 * time.Minute
	// Cap is the longest remaining time of a promoted ban.
	Cap = 24 * time.Hour
	// RecidiveCap is that of the recidive jail.
	RecidiveCap = 7 * 24 * time.Hour
)

const recidive = "recidive"

// oneHost are the jails of fail2ban's jail.conf, and of its users' habit, where a login was refused over TCP.
var oneHost = map[string]bool{
	"sshd": true, "sshd-ddos": true, "sshd-aggressive": true, "ssh": true, "dropbear": true, recidive: true,
	"postfix": true, "postfix-sasl": true, "postfix-auth": true, "postfix-rbl": false, "dovecot": true, "courier-auth": true, "courier-smtp": true,
	"cyrus-imap": true, "exim": true, "exim-auth": true, "sendmail-auth": true, "sieve": true, "solid-pop3d": true, "perdition": true,
	"uwimap-auth": true, "kerio": true, "qmail-rbl": false, "sasl": true,
}

// webPrefixes begin the names of jails that read a web server's or web application's log.
var webPrefixes = []string{
	"nginx", "apache", "lighttpd", "haproxy", "caddy", "traefik", "php-url-fopen", "suhosin", "roundcube", "wordpress", "wp-", "drupal", "nextcloud",
	"owncloud", "phpmyadmin", "horde", "squirrelmail", "sogo", "gitlab", "gitea", "grafana", "vaultwarden", "bitwarden", "openwebmail", "zoneminder",
	"http-", "web-", "tine20", "openhab", "guacamole", "monit", "webmin", "froxlor",
}

// ClassOf tells the class of a jail by its name. Case doesn't matter.
func ClassOf(jail string) Class {
	jail = strings.ToLower(jail)
	if oneHost[jail] {
		return ClassOneHost
	}
	for _, p := range webPrefixes {
		if strings.HasPrefix(jail, p) {
			return ClassTwoHosts
		}
	}
	return ClassLocal
}

// CapOf is the longest remaining time of a promoted ban of a jail.
func CapOf(jail string) time.Duration {
	if strings.EqualFold(jail, recidive) {
		return RecidiveCap
	}
	return Cap
}

// Observed is what there is to know of an observed ban.
type Observed struct {
	Jail        string
	Prefix      netip.Prefix
	Restored    bool
	Preexisting bool
	// Commanded: it was ordered by a command of the fleet.
	Commanded bool
}

// Decision is what is to become of it.
type Decision struct {
	// Set is where the claim belongs; empty when it stays local for good.
	Set string
	// Unpromoted keeps it from counting. AWAITS_SECOND_HOST is lifted by package sets when a second host agrees.
	Unpromoted operatorv1.Unpromoted
	// Cap and Window are for sets.Event.
	Cap    time.Duration
	Window time.Duration
}

// Counts reports whether the claim will count, now or once a second host agrees: what the rates are for.
func (d Decision) Counts() bool {
	return d.Set != "" && (d.Unpromoted == operatorv1.Unpromoted_UNPROMOTED_UNSPECIFIED ||
		d.Unpromoted == operatorv1.Unpromoted_UNPROMOTED_AWAITS_SECOND_HOST)
}

// Decide decides. The most lasting reason is named first: a restored ban in watch mode is "restored".
func Decide(mode fleetbanv1.Mode, o Observed) Decision {
	d := Decision{Cap: CapOf(o.Jail)}
	_, reserved := prefix.Reserved(o.Prefix)
	class := ClassOf(o.Jail)
	switch {
	case o.Commanded:
		d.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_COMMANDED
	case o.Restored:
		d.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_RESTORED
	case o.Preexisting:
		d.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_PREEXISTING
	case !prefix.IsSingle(o.Prefix) || reserved:
		d.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_NOT_PUBLIC
	case class == ClassLocal:
		d.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL
	case mode != fleetbanv1.Mode_MODE_ENFORCE:
		d.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_WATCH_MODE
	case class == ClassTwoHosts:
		d.Set, d.Window = banset.All, Window
		d.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_AWAITS_SECOND_HOST
	default:
		d.Set = banset.All
	}
	return d
}
