package keys

// TerminalKey seals sign-ins of programs that wait for a browser, and finds them by their codes.
func (k *Keys) TerminalKey() [32]byte {
	return [32]byte(k.derive("fleetban terminal sign-in key v1", 32))
}
