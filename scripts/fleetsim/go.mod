module github.com/fleetban/fleetban/scripts/fleetsim

go 1.26.0

require (
	connectrpc.com/connect v1.21.1
	github.com/HdrHistogram/hdrhistogram-go v1.4.0
	github.com/fleetban/fleetban/agent v0.0.0
	github.com/fleetban/fleetban/proto/gen/go v0.0.0
	github.com/fleetban/fleetban/proto/wire v0.0.0
)

require (
	github.com/stretchr/testify v1.12.1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace (
	github.com/fleetban/fleetban/agent => ../../agent
	github.com/fleetban/fleetban/proto/gen/go => ../../proto/gen/go
	github.com/fleetban/fleetban/proto/wire => ../../proto/wire
)
