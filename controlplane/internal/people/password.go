package people

import (
	_ "embed"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Bounds of a password: characters, and bytes as it is sent.
const (
	MinPasswordLen   = 12
	MaxPasswordBytes = 1024
)

//go:embed common.txt
var commonText string

// common are words that passwords are made of, in lower case.
var common = func() map[string]bool {
	words := make(map[string]bool)
	for _, word := range strings.Fields(commonText) {
		words[word] = true
	}
	return words
}()

// normal is the one form of a password that may be typed in several: keyboards differ in how they make an é.
func normal(password string) string { return norm.NFC.String(password) }

// checkPassword refuses what is guessed first.
func checkPassword(password string, email Email) error {
	bad := func(why string) error { return fmt.Errorf("%w password: %s", ErrWeakPassword, why) }
	if !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl) {
		return bad("it holds characters that can't be typed")
	}
	if len(password) > MaxPasswordBytes {
		return bad(fmt.Sprintf("it is longer than %d bytes", MaxPasswordBytes))
	}
	if n := utf8.RuneCountInString(normal(password)); n < MinPasswordLen {
		return bad(fmt.Sprintf("it has %d characters, at least %d are needed", n, MinPasswordLen))
	}
	folded := fold(password)
	own := map[string]bool{"fleetban": true, "failban": true}
	for _, part := range strings.FieldsFunc(email.String(), func(r rune) bool { return !isAlphanumeric(r) }) {
		own[fold(part)] = len(part) > 2
	}
	if isCommon(folded, own) || isCommon(letters(folded), own) {
		return bad("it is made of what is guessed first: common words, runs of keys, or your own address")
	}
	return nil
}

// leet are the substitutions that guessers know too.
var leet = strings.NewReplacer("0", "o", "1", "i", "3", "e", "4", "a", "5", "s", "7", "t", "@", "a", "$", "s", "!", "i")

// fold makes alike what guessers try alike.
func fold(s string) string { return leet.Replace(strings.ToLower(norm.NFKC.String(s))) }

// letters drops everything but letters: what people put before, between and behind words.
func letters(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) {
			return r
		}
		return -1
	}, s)
}

// isCommon reports whether s is nothing but few common words and runs: "password", "qwertyuiop", "abcabcabcabc".
// Words of the list count in any order and number; up to three other characters don't save it.
func isCommon(s string, own map[string]bool) bool {
	const spare = 3
	runes := []rune(s)
	if len(runes) > 64 {
		return distinct(runes) <= 3
	}
	if distinct(runes) <= 3 || isRun(runes) {
		return true
	}
	// left[i] is how few characters before i belong to no word.
	left := make([]int, len(runes)+1)
	for i := 1; i <= len(runes); i++ {
		left[i] = left[i-1] + 1
		for j := max(0, i-16); j <= i-3; j++ {
			word := string(runes[j:i])
			if left[j] < left[i] && (common[word] || own[word]) || left[j] < left[i] && i-j >= 4 && isRun(runes[j:i]) {
				left[i] = left[j]
			}
		}
	}
	words := len(runes) - left[len(runes)]
	// Three or four long words in a row are a passphrase: only those of one or two are guessed.
	return left[len(runes)] <= spare && (len(runes) <= 18 || distinct(runes) <= 8) && words > 0
}

func distinct(runes []rune) int {
	seen := make(map[rune]bool)
	for _, r := range runes {
		seen[r] = true
	}
	return len(seen)
}

// rows are keys in a row.
var rows = []string{"abcdefghijklmnopqrstuvwxyz", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiopü", "yxcvbnm", "azertyuiop", "0123456789", "1234567890", fold("1234567890"), fold("0123456789"), "qazwsxedcrfvtgbyhnujm", fold("1q2w3e4r5t6y7u8i9o0p"), "!@#$%^&*()"}

// isRun reports whether s is keys in a row, forwards or backwards, or one key.
func isRun(s []rune) bool {
	if distinct(s) == 1 {
		return true
	}
	forwards := string(s)
	reversed := make([]rune, len(s))
	for i, r := range s {
		reversed[len(s)-1-i] = r
	}
	for _, row := range rows {
		if strings.Contains(row, forwards) || strings.Contains(row, string(reversed)) {
			return true
		}
	}
	return false
}
