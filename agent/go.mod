module github.com/fleetban/fleetban/agent

go 1.26.0
