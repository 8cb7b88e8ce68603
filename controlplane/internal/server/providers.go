package server

import (
	"crypto/x509"
	"fmt"
	"os"

	"github.com/fleetban/fleetban/controlplane/internal/sso"
)

// identityProviders opens what organisations' providers are asked with.
func (c *Config) identityProviders(o sso.Options) (*sso.SSO, error) {
	o.AllowPrivate = c.SSOAllowPrivate
	if c.SSOCAFile != "" {
		pem, err := os.ReadFile(c.SSOCAFile)
		if err != nil {
			return nil, fmt.Errorf("--sso-ca-file: %w", err)
		}
		o.RootCAs = x509.NewCertPool()
		if !o.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &ConfigError{"sso-ca-file", "FLEETBAN_SSO_CA_FILE", "it holds no certificate", "give a file of PEM certificates"}
		}
	}
	return sso.New(o)
}
