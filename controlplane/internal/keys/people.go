package keys

// FactorKey seals the secrets of people's second factors.
func (k *Keys) FactorKey() [32]byte { return [32]byte(k.derive("fleetban second factor key v1", 32)) }

// DeviceKey signs what devices show that a person signed in on before.
func (k *Keys) DeviceKey() [32]byte { return [32]byte(k.derive("fleetban device key v1", 32)) }
