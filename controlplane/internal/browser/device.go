package browser

import (
	"net/http"
	"time"
)

// DeviceCookie holds what shows that a person signed in with this browser before. It lets nobody in, and outlives sessions.
const DeviceCookie = "__Host-fleetban-device"

const deviceCookieLife = 180 * 24 * time.Hour

// takeDevice puts what the browser holds into a request that has a place for it. Never what a page put there.
func takeDevice(found request, message any) {
	if m, ok := message.(interface{ SetDevice(device string) }); ok {
		m.SetDevice(found.device)
	}
}

// keepDevice moves it from an answer into a cookie.
func keepDevice(header http.Header, message any) {
	m, ok := message.(interface {
		GetDevice() string
		SetDevice(device string)
	})
	if !ok || m.GetDevice() == "" {
		return
	}
	add(header, DeviceCookie, m.GetDevice(), int(deviceCookieLife.Seconds()))
	m.SetDevice("")
}
