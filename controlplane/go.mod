module github.com/fleetban/fleetban/controlplane

go 1.26.0
