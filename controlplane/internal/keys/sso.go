package keys

// SSOKey seals what is kept of organisations' identity providers.
func (k *Keys) SSOKey() [32]byte { return [32]byte(k.derive("fleetban identity provider key v1", 32)) }
