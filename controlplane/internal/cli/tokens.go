package cli

import (
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

type tokensCmd struct {
	List   tokensListCmd   `cmd:"" default:"1" help:"List your API tokens, or all of the organisation's."`
	Create tokensCreateCmd `cmd:"" help:"Make an API token: one that acts as you, or one of the organisation."`
	Revoke tokensRevokeCmd `cmd:"" help:"End an API token, at once."`
}

type tokensCreateCmd struct {
	Name         string   `arg:"" help:"What you will know it by."`
	Role         string   `enum:"admin,operator,viewer," default:"" help:"It may what an admin, operator or viewer may, of what programs can."`
	Can          []string `placeholder:"PERMISSION" help:"It may only this, instead of a role: fleet-read, bans-write, allowlist-write, policy-write, hosts-write, audit-read; may be repeated."`
	Tag          []string `placeholder:"k=v" help:"It sees and steers only hosts with one of these tags; may be repeated."`
	For          Duration `default:"90d" help:"How long it lives, 1m to 366d."`
	Organisation bool     `name:"organisation" short:"O" help:"The organisation's: it acts as nobody, and stays when you leave. For owners and admins."`
}

func (t *tokensCreateCmd) run(r *run) error {
	if (t.Role == "") == (len(t.Can) == 0) {
		return usage("say what it may: a role or permissions", "--role viewer, or --can fleet-read --can bans-write")
	}
	var permissions []optionsv1.Permission
	for _, name := range t.Can {
		p, known := optionsv1.Permission_value["PERMISSION_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))]
		if !known || p == 0 {
			return usage("there is no permission "+name, "fleet-read, bans-write, allowlist-write, policy-write, hosts-write, audit-read")
		}
		permissions = append(permissions, optionsv1.Permission(p))
	}
	ctx, cancel := r.call()
	defer cancel()
	seconds := int64(time.Duration(t.For) / time.Second)
	var role operatorv1.Role
	if t.Role != "" {
		role = roleOf(t.Role)
	}
	var secret string
	var token *operatorv1.ApiToken
	if t.Organisation {
		res, err := r.api.orgTokens.CreateOrganisationToken(ctx, connect.NewRequest(operatorv1.CreateOrganisationTokenRequest_builder{
			Name: t.Name, Role: role, Permissions: permissions, Tags: t.Tag, DurationS: seconds,
		}.Build()))
		if err != nil {
			return err
		}
		if !r.out.people() {
			r.out.json(res.Msg)
			return nil
		}
		secret, token = res.Msg.GetSecret(), res.Msg.GetToken()
	} else {
		res, err := r.api.tokens.CreateToken(ctx, connect.NewRequest(operatorv1.CreateTokenRequest_builder{
			Name: t.Name, Role: role, Permissions: permissions, Tags: t.Tag, DurationS: seconds,
		}.Build()))
		if err != nil {
			return err
		}
		if !r.out.people() {
			r.out.json(res.Msg)
			return nil
		}
		secret, token = res.Msg.GetSecret(), res.Msg.GetToken()
	}
	r.out.line("The token, shown once; permissions: %s; until %s:", mayText(token), r.out.clock.when(token.GetExpiresUnixMs()))
	r.out.line("")
	r.out.line("  %s", escape(secret, 200))
	r.out.line("")
	r.out.line("Give it to the program as FLEETBAN_TOKEN. End it with: fleetban tokens revoke %s", token.GetId())
	return nil
}

// mayText is what a token may, where.
func mayText(t *operatorv1.ApiToken) string {
	may := make([]string, 0, len(t.GetPermissions()))
	for _, p := range t.GetPermissions() {
		may = append(may, strings.ReplaceAll(enumText(p.String(), "PERMISSION_"), " ", "-"))
	}
	text := strings.Join(may, ", ")
	if len(t.GetTags()) > 0 {
		text += " on hosts with " + strings.Join(t.GetTags(), " or ")
	}
	return text
}

type tokensListCmd struct {
	Organisation bool `name:"organisation" short:"O" help:"Every token of the organisation, its members' too."`
}

func (t *tokensListCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	var all []*operatorv1.ApiToken
	if t.Organisation {
		for token := ""; ; {
			res, err := r.api.orgTokens.ListOrganisationTokens(ctx, connect.NewRequest(operatorv1.ListOrganisationTokensRequest_builder{PageSize: 1000, PageToken: token}.Build()))
			if err != nil {
				return err
			}
			all = append(all, res.Msg.GetTokens()...)
			if token = res.Msg.GetNextPageToken(); token == "" {
				break
			}
		}
	} else {
		res, err := r.api.tokens.ListTokens(ctx, connect.NewRequest(&operatorv1.ListTokensRequest{}))
		if err != nil {
			return err
		}
		all = res.Msg.GetTokens()
	}
	if !r.out.people() {
		list(r.out, operatorv1.ListTokensResponse_builder{Tokens: all}.Build(), all)
		return nil
	}
	if len(all) == 0 && t.Organisation {
		r.out.line("The organisation has no API token. Make one: fleetban tokens create NAME --organisation")
		return nil
	}
	if len(all) == 0 {
		r.out.line("You have no API token. Make one: fleetban tokens create NAME; the organisation's: fleetban tokens list --organisation")
		return nil
	}
	rows := make([][]cell, 0, len(all))
	for _, token := range all {
		whose, ends, used := token.GetPersonEmail(), "never", "never"
		if whose == "" {
			whose = "organisation"
		}
		if at := token.GetExpiresUnixMs(); at > 0 {
			ends = r.out.clock.when(at)
		}
		if at := token.GetUsedUnixMs(); at > 0 {
			used = r.out.clock.ago(at) + " " + token.GetUsedAddress()
		}
		rows = append(rows, []cell{c(token.GetId()), c(token.GetName()), c(whose), c(mayText(token)), c(ends), c(used), c(token.GetCreatedBy())})
	}
	r.out.table([]string{"ID", "NAME", "WHOSE", "MAY", "ENDS", "USED", "MADE BY"}, rows)
	return nil
}

type tokensRevokeCmd struct {
	ID           string `arg:"" name:"id" help:"Its id, or the whole token."`
	Organisation bool   `name:"organisation" short:"O" help:"Any token of the organisation, also a member's."`
}

func (t *tokensRevokeCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	if t.Organisation {
		res, err := r.api.orgTokens.RevokeOrganisationToken(ctx, connect.NewRequest(operatorv1.RevokeOrganisationTokenRequest_builder{Id: t.ID}.Build()))
		if err != nil {
			return err
		}
		return r.done(res.Msg, "Revoked.")
	}
	res, err := r.api.tokens.RevokeToken(ctx, connect.NewRequest(operatorv1.RevokeTokenRequest_builder{Id: t.ID}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "Revoked.")
}
