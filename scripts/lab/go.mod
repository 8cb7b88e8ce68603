module github.com/fleetban/fleetban/scripts/lab

go 1.26.0

require (
	connectrpc.com/connect v1.21.1
	github.com/fleetban/fleetban/proto/gen/go v0.0.0
	github.com/fleetban/fleetban/proto/wire v0.0.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace (
	github.com/fleetban/fleetban/proto/gen/go => ../../proto/gen/go
	github.com/fleetban/fleetban/proto/wire => ../../proto/wire
)
