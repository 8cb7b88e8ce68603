// Package acmecert has the control plane's certificate made by an authority that speaks ACME (RFC 8555), Let's Encrypt for one, and
// renewed in time, for any number of replicas behind one name.
//
//	look (each replica, every second)
//	  │ a certificate that is newer than the one served stands in Redis ──▶ serve it
//	  │ the one served is not due, or another replica has the lease, or the last attempt failed lately ──▶ nothing
//	  └ else, under the lease: order ─▶ challenge's token to Redis ─▶ validated at whichever replica ─▶ certificate to Redis
//
// golang.org/x/crypto/acme/autocert keeps its state in each process: two replicas would order twice, serve different certificates
// and know of each other's renewals when their own timers ring. Here one replica orders, and what the others need for it is in Redis.
//
// Nothing of that is secret. The certificate's key and the account's are derived from the fleet's secret, which all replicas have,
// and so are the proofs for challenges, once the token is known. The key stays the same at each renewal: hosts that pinned it,
// when the control plane made its certificates itself, are served as before. What Redis keeps is signed (package seal).
package acmecert
