package browser

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Interceptor moves tokens between messages and cookies in calls that Layer found to be the console's. It stands outside
// of apierr's, and so of all that look at messages.
type Interceptor struct{}

var _ connect.Interceptor = Interceptor{}

// WrapUnary implements connect.Interceptor.
func (Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		found, ok := ctx.Value(requestKey{}).(request)
		if !ok || req.Spec().IsClient {
			return next(ctx, req)
		}
		if refresh, ok := req.Any().(*operatorv1.RefreshRequest); ok {
			// Never the one in the message: whoever could have a browser send theirs would have it use their session.
			if found.refresh == "" {
				return nil, apierr.From(ctx, apierr.Wrap(errNoCookie, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "refresh_token",
					"this browser holds no session", "sign in"))
			}
			refresh.SetRefreshToken(found.refresh)
		}
		takeDevice(found, req.Any())
		res, err := next(ctx, req)
		signOut := req.Spec().Procedure == operatorv1connect.SessionServiceSignOutProcedure
		// A session that ended long ago is signed out of, too.
		if signOut && (err == nil || connect.CodeOf(err) == connect.CodeUnauthenticated) {
			clearTokens(found.header)
		}
		if err != nil || signOut {
			return res, err
		}
		keepDevice(found.header, res.Any())
		if message, ok := res.Any().(proto.Message); ok {
			if tokens := tokensOf(message); tokens != nil {
				set(found.header, tokens.GetAccessToken(), tokens.GetAccessS(), tokens.GetRefreshToken(), tokens.GetSessionEndsUnixMs())
				tokens.SetAccessToken("")
				tokens.SetRefreshToken("")
			}
		}
		return res, nil
	}
}

// WrapStreamingHandler implements connect.Interceptor: no stream begins or ends a session.
func (Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// WrapStreamingClient implements connect.Interceptor.
func (Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

var tokensName = (&operatorv1.Tokens{}).ProtoReflect().Descriptor().FullName()

// tokensOf is the Tokens that stands in a message, whichever RPC's it is; nil where there is none.
func tokensOf(m proto.Message) *operatorv1.Tokens {
	var found *operatorv1.Tokens
	m.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if field.Cardinality() != protoreflect.Repeated && field.Message() != nil && field.Message().FullName() == tokensName {
			found, _ = v.Message().Interface().(*operatorv1.Tokens)
		}
		return found == nil
	})
	return found
}

func set(header http.Header, access string, accessS int64, refresh string, endsUnixMS int64) {
	if access == "" || refresh == "" {
		return
	}
	add(header, AccessCookie, access, int(accessS))
	add(header, RefreshCookie, refresh, max(int(time.Until(time.UnixMilli(endsUnixMS)).Seconds()), 1))
}

func clearTokens(header http.Header) {
	add(header, AccessCookie, "", -1)
	add(header, RefreshCookie, "", -1)
}

// add sets one cookie for maxAge seconds; negative: it goes.
func add(header http.Header, name, value string, maxAge int) {
	header.Add("Set-Cookie", (&http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: true, SameSite: http.SameSiteStrictMode,
	}).String())
}
