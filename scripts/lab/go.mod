module github.com/fleetban/fleetban/scripts/lab

go 1.26.0
