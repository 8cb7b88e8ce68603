package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// authorities are those of a file, read again when it changes: who makes hosts' client certificates.
type authorities struct {
	path   string
	logger *slog.Logger

	mu     sync.Mutex
	pool   *x509.CertPool
	stamp  time.Time
	size   int64
	looked time.Time
}

func loadAuthorities(path string, logger *slog.Logger) (*authorities, error) {
	a := &authorities{path: path, logger: logger}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("--agent-client-ca: %w", err)
	}
	return a, a.load(info)
}

func (a *authorities) load(info fs.FileInfo) error {
	text, err := os.ReadFile(a.path)
	if err != nil {
		return fmt.Errorf("--agent-client-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return fmt.Errorf("--agent-client-ca: %w", errors.New(a.path+" holds no certificate in PEM"))
	}
	a.pool, a.stamp, a.size = pool, info.ModTime(), info.Size()
	return nil
}

// get is what the file holds. While it can't be read or holds none, it is what it held before.
func (a *authorities) get() *x509.CertPool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.looked) > lookEvery {
		a.looked = time.Now()
		if info, err := os.Stat(a.path); err == nil && (info.ModTime() != a.stamp || info.Size() != a.size) {
			if err := a.load(info); err != nil {
				a.logger.Error("new authorities of hosts can't be used, keeping the old ones", slog.Any("error", err))
			} else {
				a.logger.Info("authorities of hosts read again")
			}
		}
	}
	return a.pool
}
