package promotion

// Promotions a minute, and at once. What exceeds them stays local. Package sets holds to them, in the script that records:
// one limit for a host and one for an organisation, however many replicas serve them.
const (
	HostPerMinute         = 30
	OrganisationPerMinute = 300
)
