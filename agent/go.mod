module github.com/fleetban/fleetban/agent

go 1.26.0

require (
	connectrpc.com/connect v1.21.1
	github.com/BurntSushi/toml v1.6.0
	github.com/fleetban/fleetban/proto/gen/go v0.0.0
	github.com/fleetban/fleetban/proto/wire v0.0.0
	github.com/hashicorp/go-retryablehttp v0.7.8
	golang.org/x/sys v0.49.0
	google.golang.org/protobuf v1.36.12
	pgregory.net/rapid v1.3.0
)

require (
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	github.com/hashicorp/go-cleanhttp v0.5.2 // indirect
)

replace (
	github.com/fleetban/fleetban/proto/gen/go => ../proto/gen/go
	github.com/fleetban/fleetban/proto/wire => ../proto/wire
)
