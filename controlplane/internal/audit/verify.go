package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what Redis' scripts have; what an attacker could choose of its input is behind a MAC
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// maxFindings is how many an answer holds.
const maxFindings = 100

// ErrDropped is returned where the entry of a noted head is no longer kept.
var ErrDropped = errors.New("the noted entry was dropped since, for its age or number")

type finding = operatorv1.AuditFindingKind

const (
	changed   = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_CHANGED
	removed   = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_REMOVED
	moved     = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_MOVED
	truncated = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_TRUNCATED
	gapped    = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_GAP
	forged    = operatorv1.AuditFindingKind_AUDIT_FINDING_KIND_FORGED
)

// meta is fb:{ORG}:auditmeta.
type meta struct {
	head, base, sealed Head
	seal               string
	last               string // id of the newest entry
}

func (l *Log) meta(ctx context.Context, org string) (meta, error) {
	// Together, for they change together.
	pipe := l.store.Client().TxPipeline()
	all, newest := pipe.HGetAll(ctx, metaKey(org)), pipe.XRevRangeN(ctx, logKey(org), "+", "-", 1)
	if _, err := pipe.Exec(ctx); err != nil {
		return meta{}, fmt.Errorf("read the audit log's head: %w", store.Classify(err))
	}
	f := all.Val()
	head := func(n, h string) Head {
		number, _ := strconv.ParseUint(f[n], 10, 64)
		return Head{number, f[h]}
	}
	m := meta{head: head("n", "h"), base: head("bn", "bh"), sealed: head("sn", "sh"), seal: f["sm"]}
	if len(newest.Val()) > 0 {
		m.last = newest.Val()[0].ID
	}
	return m, nil
}

// Verify checks the whole log, and that it goes on from noted where that isn't zero. ErrDropped, ErrInvalid.
func (l *Log) Verify(ctx context.Context, org string, noted Head) (*operatorv1.VerifyAuditResponse, error) {
	noted.Hash = strings.ToLower(noted.Hash)
	if (noted.Number == 0) != (noted.Hash == "") || noted.Number > 0 && !isHash(noted.Hash) {
		return nil, fmt.Errorf("%w head: a number and a hash of %d hex digits belong together", ErrInvalid, hashLen)
	}
	const attempts = 5
	for attempt := 1; ; attempt++ {
		m, err := l.meta(ctx, org)
		if err != nil {
			return nil, err
		}
		clock, err := l.store.Time(ctx, org)
		if err != nil {
			return nil, fmt.Errorf("verify the audit log: %w", err)
		}
		v := &verifier{log: l, org: org, meta: m, now: clock, hashes: map[uint64]string{}, seen: map[string]bool{}, open: map[string]int64{}}
		if m.last != "" {
			if err := l.scan(ctx, org, m.last, v.entry); err != nil {
				return nil, err
			}
		}
		after, err := l.meta(ctx, org)
		if err != nil {
			return nil, err
		}
		if after.base != m.base && attempt < attempts {
			continue // the oldest were dropped meanwhile
		}
		return v.done(noted)
	}
}

func isHash(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == hashLen
}

// verifier goes through a log once.
type verifier struct {
	log  *Log
	org  string
	meta meta
	now  time.Time

	first, last stored
	prev        Head
	hashes      map[uint64]string
	seen        map[string]bool
	open        map[string]int64 // what was begun → when
	base        []Head           // what entries say was dropped
	vouched     uint64           // the newest entry that a later one, or a seal, vouches for
	out         operatorv1.VerifyAuditResponse_builder
}

func (v *verifier) find(kind finding, number uint64, format string, args ...any) {
	if v.out.FindingsTotal++; len(v.out.Findings) < maxFindings {
		v.out.Findings = append(v.out.Findings, operatorv1.AuditFinding_builder{Kind: kind, Number: number, Text: fmt.Sprintf(format, args...)}.Build())
	}
}

func (v *verifier) entry(s stored) error {
	if v.out.Entries++; v.out.Entries == 1 {
		v.first = s
		if v.prev = v.meta.base; v.prev.Number == 0 {
			v.prev.Hash = strings.Repeat("0", hashLen)
		}
		v.hashes[v.prev.Number] = v.prev.Hash
	}
	chained := s.number == v.prev.Number+1
	if !chained {
		v.find(removed, s.number, "entries %d to %d are missing", v.prev.Number+1, s.number-1)
	}
	if s.at < v.last.at {
		v.find(moved, s.number, "its time is before that of the entry before it")
	}
	if chained && linkOf(v.prev.Hash, s) != s.hash {
		v.find(moved, s.number, "its hash doesn't follow from the entry before it: one of them was changed, moved or put in")
	}
	v.prev, v.last, v.hashes[s.number] = Head{s.number, s.hash}, s, s.hash
	if action, is := s.marker(); is {
		if action == ActionRestart {
			v.out.Restarts++
		} else if s.number != 1 {
			v.find(gapped, s.number, "Redis began a new log here: it had lost the head of the old one")
		}
		return nil
	}
	e := v.log.signed(v.org, s)
	switch {
	case s.mac == "":
		v.find(forged, s.number, "it has no signature")
	case e == nil:
		v.find(changed, s.number, "it isn't what the control plane wrote: it was changed, or somebody without the fleet's secret put it in")
	default:
		v.said(s, e)
	}
	return nil
}

// said checks what a signed entry says of others.
func (v *verifier) said(s stored, e *operatorv1.AuditEntry) {
	id := e.GetId() + e.GetPhase().String()
	if v.seen[id] {
		v.find(moved, s.number, "it stands in the log twice")
	}
	v.seen[id] = true
	if len(s.found) > maxText || strings.ContainsFunc(s.found, func(r rune) bool { return r < ' ' || r > '~' }) {
		v.find(forged, s.number, "what Redis is to have found is no such text")
	}
	switch e.GetPhase() {
	case operatorv1.AuditPhase_AUDIT_PHASE_BEGUN:
		v.open[e.GetId()] = s.at
	case operatorv1.AuditPhase_AUDIT_PHASE_ENDED:
		delete(v.open, e.GetId())
	default:
	}
	if e.GetAction() == ActionTrim {
		for _, d := range e.GetDetails() {
			n, h, _ := strings.Cut(d.GetAfter(), ":")
			if number, err := strconv.ParseUint(n, 10, 64); err == nil && d.GetName() == trimDetail {
				v.base = append(v.base, Head{number, h})
			}
		}
	}
	known := Head{e.GetKnownNumber(), e.GetKnownHash()}
	hash, kept := v.hashes[known.Number]
	switch {
	case known.Number == 0 || !kept && known.Number < v.first.number:
	case !kept && known.Number < s.number: // missing: found already
	case known.Number >= s.number || hash != known.Hash:
		v.find(gapped, s.number, "its writer knew entry %d with the hash %.40s, which isn't in the log: Redis lost entries, or somebody put back an older state",
			known.Number, known.Hash)
	default:
		v.vouched = max(v.vouched, known.Number)
	}
}

// done checks the two ends.
func (v *verifier) done(noted Head) (*operatorv1.VerifyAuditResponse, error) {
	m := v.meta
	if m.head.Number > v.last.number && m.head != m.base {
		v.find(truncated, m.head.Number, "entries %d to %d, the last, are missing", v.last.number+1, m.head.Number)
	} else if v.out.Entries > 0 && m.head != v.prev {
		v.find(changed, v.last.number, "the head that is noted in Redis isn't the last entry")
	}
	if m.base.Number > 0 && v.out.Entries > 0 {
		vouched := false
		for _, b := range v.base {
			vouched = vouched || b == m.base
		}
		if !vouched {
			v.find(removed, v.first.number, "no entry says that those up to %d were dropped", m.base.Number)
		}
	}
	v.sealed()
	if noted.Number > 0 {
		hash, kept := v.hashes[noted.Number]
		switch {
		case noted.Number > v.last.number:
			v.find(truncated, noted.Number, "the log ends before the noted entry %d", noted.Number)
		case !kept && noted.Number < v.first.number:
			return nil, ErrDropped
		case kept && hash != noted.Hash:
			v.find(gapped, noted.Number, "this isn't the log whose head was noted: entry %d has another hash", noted.Number)
		}
	}
	for _, at := range v.open {
		if v.now.Sub(time.UnixMilli(at)) >= underWay {
			v.out.UnknownOutcomes++
		}
	}
	v.out.Intact = v.out.FindingsTotal == 0
	v.out.FirstNumber, v.out.HeadNumber, v.out.HeadHash, v.out.HeadAtUnixMs = v.first.number, v.last.number, v.last.hash, v.last.at
	v.out.Unsealed = v.last.number - min(v.vouched, v.last.number)
	return v.out.Build(), nil
}

func (v *verifier) sealed() {
	s := v.meta.sealed
	hash, kept := v.hashes[s.Number]
	switch {
	case s.Number == 0:
	case !hmac.Equal([]byte(v.meta.seal), v.log.signer.AuditMAC(v.org, macSeal, sealedText(s))):
		v.find(forged, s.Number, "the seal isn't the control plane's")
	case s.Number > v.last.number:
		v.find(truncated, s.Number, "the log ends before entry %d, which was sealed", s.Number)
	case kept && hash != s.Hash:
		v.find(changed, s.Number, "this isn't the log that was sealed: entry %d has another hash", s.Number)
	case kept:
		v.vouched = max(v.vouched, s.Number)
	}
}

func sealedText(h Head) []byte { return []byte(strconv.FormatUint(h.Number, 10) + " " + h.Hash) }

// linkOf is the hash of an entry after one with the hash prev: as in lua/write.lua.
func linkOf(prev string, s stored) string {
	sum := sha1.Sum([]byte(prev + " " + strconv.FormatUint(s.number, 10) + " " + s.t + " " + s.found + "\n" + s.mac)) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}
