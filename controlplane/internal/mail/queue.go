package mail

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// maxWaiting is how many letters may wait in Redis.
	maxWaiting = 1000
	senders    = 2
	// pollEvery is how often a sender with nothing to do looks whether another replica left something.
	pollEvery = time.Second
	// lease is how long a letter is one sender's: longer than making and delivering one may take.
	lease = 90 * time.Second
)

var (
	//go:embed lua/put.lua
	putText   string
	putScript = store.NewScript("mail/put", putText)

	//go:embed lua/take.lua
	takeText   string
	takeScript = store.NewScript("mail/take", takeText)

	dueKey     = store.Key("mail", "due")
	lettersKey = store.Key("mail", "letters")
)

// ErrFull says that too many letters wait already.
var ErrFull = errors.New("too many letters wait to be sent")

// Keys makes MACs of the fleet's secret: *keys.Keys.
type Keys interface {
	SealMAC(org string, data []byte) []byte
}

// job is what waits: a letter, or what one is made of when its turn comes.
type job struct {
	Letter  *Letter         `json:"letter,omitempty"`
	Request json.RawMessage `json:"request,omitempty"`
	// Tries is how often it was tried.
	Tries int `json:"tries,omitempty"`
}

// queue holds letters in Redis, encrypted, for links stand in them: what one replica took and didn't send when it died, another
// one sends, at latest a lease later. So a letter may be sent twice, and isn't lost.
type queue struct {
	store *store.Store
	aead  cipher.AEAD
	wake  chan struct{}
}

func newQueue(st *store.Store, k Keys) (*queue, error) {
	key := sha256.Sum256(k.SealMAC("", []byte("letters that wait")))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("key of letters: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("key of letters: %w", err)
	}
	return &queue{store: st, aead: aead, wake: make(chan struct{}, 1)}, nil
}

// put keeps a job: a new one, or one that waits already, for later.
func (q *queue) put(ctx context.Context, id string, j job, later time.Duration, most int) error {
	raw, err := json.Marshal(j) //nolint:gosec // to be sealed
	if err != nil {
		return fmt.Errorf("keep letter: %w", err)
	}
	sealed := base64.RawStdEncoding.EncodeToString(q.aead.Seal(nil, nil, raw, []byte(id))) //nolint:gosec // this AEAD makes its nonces itself
	done, err := putScript.Run(ctx, q.store, []string{dueKey, lettersKey}, id, sealed, later.Milliseconds(), most).Int()
	if err != nil {
		return fmt.Errorf("keep letter: %w", err)
	}
	if done != 1 && most > 0 {
		return ErrFull
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return nil
}

// take is the next job; "" where none is due.
func (q *queue) take(ctx context.Context) (id string, j job, err error) {
	reply, err := takeScript.Run(ctx, q.store, []string{dueKey, lettersKey}, lease.Milliseconds()).StringSlice()
	if err != nil || len(reply) != 2 {
		return "", job{}, err //nolint:wrapcheck // said where it is used
	}
	if j, err = q.open(reply[0], reply[1]); err != nil {
		return reply[0], job{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return reply[0], j, nil
}

// open is the job that a sealed text is of, under this id.
func (q *queue) open(id, sealed string) (job, error) {
	raw, err := base64.RawStdEncoding.DecodeString(sealed)
	if err != nil {
		return job{}, fmt.Errorf("decode: %w", err)
	}
	if raw, err = q.aead.Open(nil, nil, raw, []byte(id)); err != nil {
		return job{}, fmt.Errorf("decrypt: %w", err)
	}
	return parseJob(raw)
}

// parseJob reads one, which may be another release's.
func parseJob(raw []byte) (job, error) {
	var j job
	if err := json.Unmarshal(raw, &j); err != nil {
		return job{}, fmt.Errorf("parse: %w", err)
	}
	if j.Tries < 0 || (j.Letter == nil) == (j.Request == nil) {
		return job{}, errors.New("it is neither a letter nor a request for one")
	}
	return j, nil
}

// errDamaged: what waits isn't this fleet's.
var errDamaged = errors.New("a letter in Redis is not this fleet's")

func (q *queue) done(ctx context.Context, id string) error {
	pipe := q.store.Client().TxPipeline()
	pipe.HDel(ctx, lettersKey, id)
	pipe.ZRem(ctx, dueKey, id)
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("take letter from the queue: %w", store.Classify(err))
	}
	return nil
}

// Send has a letter sent in the background, by whichever replica comes first: ErrFull where too many wait, or an error of the
// store. Once it returns without one, the letter is sent or said in a log to be given up.
func (m *Mailer) Send(ctx context.Context, l Letter) error {
	return m.queue.put(ctx, ulid.Make().String(), job{Letter: &l}, 0, maxWaiting)
}

// SendMade is Send of a letter that is made of a request, as JSON, by what OnRequest was given.
func (m *Mailer) SendMade(ctx context.Context, request any) error {
	raw, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("keep letter: %w", err)
	}
	return m.queue.put(ctx, ulid.Make().String(), job{Request: raw}, 0, maxWaiting)
}

// OnRequest says who makes letters of requests; nil where there is nobody to send one to. Call it before Run.
func (m *Mailer) OnRequest(make func(ctx context.Context, request []byte) (*Letter, error)) {
	if m != nil {
		m.make = make
	}
}

// Run sends until ctx ends. What waits then is sent by another replica, or after the next start.
func (m *Mailer) Run(ctx context.Context) {
	if m == nil {
		return
	}
	var all sync.WaitGroup
	for range senders {
		all.Go(func() { m.run(ctx) })
	}
	all.Wait()
}

func (m *Mailer) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-m.queue.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			id, j, err := m.queue.take(ctx)
			if errors.Is(err, errDamaged) {
				m.logger.ErrorContext(ctx, "a letter that waits in Redis is damaged, or somebody wrote to Redis", slog.String("letter", id), slog.Any("error", err))
				err = m.queue.done(ctx, id)
				id = ""
			}
			if err != nil && ctx.Err() == nil {
				m.logger.WarnContext(ctx, "letters that wait can't be looked at", slog.Any("error", err))
			}
			if err != nil || id == "" {
				break
			}
			// What was begun is ended: it takes less than the lease.
			m.work(context.WithoutCancel(ctx), id, j)
		}
		timer.Reset(pollEvery)
	}
}

// work makes and sends one letter, and has it tried again where that fails and may not another time.
func (m *Mailer) work(ctx context.Context, id string, j job) {
	err := m.attempt(ctx, &j)
	gone := err == nil
	if !gone && (j.Tries >= len(m.backoff) || !worthTrying(err)) {
		m.logger.ErrorContext(ctx, "a letter was not sent, and is given up", slog.String("letter", id), slog.String("subject", j.subject()), slog.Any("error", err))
		gone = true
	}
	if gone {
		if err := m.queue.done(ctx, id); err != nil {
			m.logger.WarnContext(ctx, "a letter will be sent twice", slog.String("letter", id), slog.Any("error", err))
		}
		return
	}
	m.logger.WarnContext(ctx, "a letter was not sent yet", slog.String("letter", id), slog.String("subject", j.subject()), slog.Any("error", err))
	wait := m.backoff[j.Tries]
	j.Tries++
	if err := m.queue.put(ctx, id, j, wait, 0); err != nil {
		m.logger.WarnContext(ctx, "a letter will be tried again later than it should", slog.String("letter", id), slog.Any("error", err))
	}
}

func (j *job) subject() string {
	if j.Letter == nil {
		return "not made yet"
	}
	return j.Letter.Subject
}

// attempt makes the letter, where it isn't, and sends it. What was made is kept with the job: another try makes none anew.
func (m *Mailer) attempt(ctx context.Context, j *job) error {
	if j.Letter == nil {
		bounded, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if m.make == nil {
			return errors.New("nobody makes letters of requests")
		}
		made, err := m.make(bounded, j.Request)
		if err != nil {
			return fmt.Errorf("%w: %w", errNotMade, err)
		}
		if made == nil {
			return nil
		}
		j.Letter, j.Request = made, nil
	}
	if err := m.deliver(ctx, *j.Letter); err != nil {
		return err
	}
	m.logger.InfoContext(ctx, "a letter was sent", slog.String("subject", j.Letter.Subject), slog.String("domain", domainOf(j.Letter.To)))
	return nil
}

// errNotMade: what a letter is made of wasn't to be had.
var errNotMade = errors.New("the letter was not made")
