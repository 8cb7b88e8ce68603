import { useQuery } from "@connectrpc/connect-query";
import { ask, expire } from "@/api/session";
import { Page } from "@/components/panel";
import { SecondFactorService } from "@/gen/fleetban/operator/v1/factors_pb";
import { useText } from "@/i18n";
import { Factors } from "./settings/account";

/** MustEnrol stands in the place of everything for who must have a second factor and has none. */
export function MustEnrol() {
  const { t } = useText();
  const factors = useQuery(SecondFactorService.method.getFactors);
  const enrolled = factors.data !== undefined && (factors.data.totp || factors.data.passkeys.length > 0) && factors.data.recoveryCodesLeft > 0;
  return (
    <main>
      <Page title={t.mustEnrol.title} lead={t.mustEnrol.lead}>
        <Factors kept={enrolled ? goOn : undefined} />
      </Page>
    </main>
  );
}

/** goOn has the next access token say that there is one. */
function goOn(): void {
  expire();
  void ask();
}
