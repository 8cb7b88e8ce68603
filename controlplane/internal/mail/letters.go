package mail

import (
	"strings"
	"time"
	"unicode"
)

// Reset is the letter with a link to set a new password.
func Reset(to, link string, life time.Duration) Letter {
	return Letter{To: to, Subject: "Set a new Fleetban password", Text: lines(
		"Somebody, probably you, asked for a new password for your Fleetban account.",
		"",
		"Set it here, within "+duration(life)+":",
		"",
		"  "+link,
		"",
		"The link works once. All your sessions end with it; your second factor stays as it is.",
		"If you didn't ask for it, do nothing: your password is what it was.",
	)}
}

// Confirm is the letter to a new address.
func Confirm(to, link string, life time.Duration) Letter {
	return Letter{To: to, Subject: "Confirm your address for Fleetban", Text: lines(
		"Somebody wants to use this address for their Fleetban account.",
		"",
		"If that was you, confirm it here, within "+duration(life)+":",
		"",
		"  "+link,
		"",
		"If it wasn't, do nothing, and nothing changes.",
	)}
}

// Changing is the notice to the present address that another one is to take its place.
func Changing(to, next string) Letter {
	return Letter{To: to, Subject: "Your Fleetban address is about to change", Text: lines(
		"Somebody who is signed in to your Fleetban account asked to change its address to "+clean(next)+".",
		"It changes when that address is confirmed.",
		"",
		"If that wasn't you, change your password now: it voids the change and ends all other sessions.",
	)}
}

// Changed is the notice to the former address.
func Changed(to, next string) Letter {
	return Letter{To: to, Subject: "Your Fleetban address was changed", Text: lines(
		"Your Fleetban account's address is "+clean(next)+" now. Mail about it comes there from now on.",
		"",
		"If that wasn't you, tell an owner of your organisation at once.",
	)}
}

// PasswordSet is the notice that a link was used.
func PasswordSet(to string) Letter {
	return Letter{To: to, Subject: "Your Fleetban password was set anew", Text: lines(
		"The password of your Fleetban account was set anew by a link, and all sessions were ended.",
		"",
		"If that wasn't you, somebody reads your mail: secure it, then ask for a link of your own.",
	)}
}

// PasswordChanged is the notice that a password was changed by who knew the former one.
func PasswordChanged(to string) Letter {
	return Letter{To: to, Subject: "Your Fleetban password was changed", Text: lines(
		"The password of your Fleetban account was changed, and all other sessions were ended.",
		"",
		"If that wasn't you, somebody knew it and sat at a session of yours: ask for a link to set it anew.",
	)}
}

// FactorsChanged is the notice that a second factor came or went: what is words, like "A passkey was added".
func FactorsChanged(to, what string) Letter {
	return Letter{To: to, Subject: "Your Fleetban second factor was changed", Text: lines(
		clean(what)+".",
		"",
		"If that wasn't you, change your password and look at your second factors.",
	)}
}

// Invitation is the letter to who is invited.
func Invitation(to, by, role, link string, life time.Duration) Letter {
	return Letter{To: to, Subject: "You are invited to Fleetban", Text: lines(
		clean(by)+" invites you to their Fleetban organisation, as "+clean(role)+".",
		"",
		"Accept within "+duration(life)+":",
		"",
		"  "+link,
		"",
		"The link works once. If you don't know them, do nothing.",
	)}
}

func lines(all ...string) string { return strings.Join(all, "\r\n") + "\r\n" }

// clean keeps what others wrote on one line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

func duration(d time.Duration) string {
	switch {
	case d == 7*24*time.Hour:
		return "seven days"
	case d >= 24*time.Hour:
		return "a day"
	default:
		return strings.TrimSuffix(d.String(), "m0s") + " minutes"
	}
}
