// Package localrpc carries Connect over a Unix socket of the host and knows who is at the other end.
//
// The kernel says which user a peer is (SO_PEERCRED); every procedure lists the users that may call it, and an
// interceptor refuses the rest, on unary calls and on streams alike.
//
//	server, err := localrpc.Listen(path, localrpc.SocketOptions{Mode: 0o660, GID: gid})
//	server.Handle(localrpc.Unary(hostv1connect.HelperServiceCursorsProcedure, allow, helper.Cursors))
//	err = server.Serve(ctx)
//
// Messages travel in one type for all (package envelope); on the wire it is plain Connect, so the generated clients speak to
// it as well.
package localrpc
