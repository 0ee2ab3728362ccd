package natsclient_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/natsclient"
)

// Files that the client would refuse at its first connection are refused when
// the configuration is read, and nothing of them is shown.
func TestFilesAreCheckedAtValidation(t *testing.T) {
	pair := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string, string) {
		t.Helper()
		p, err := create()
		if err != nil {
			t.Fatal(err)
		}
		seed, err1 := p.Seed()
		public, err2 := p.PublicKey()
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return p, string(seed), public
	}
	account, accountSeed, _ := pair(nkeys.CreateAccount)
	_, seed, public := pair(nkeys.CreateUser)
	_, other, _ := pair(nkeys.CreateUser)
	token, err := jwt.NewUserClaims(public).Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	creds := func(token, seed string) string {
		text, err := jwt.FormatUserConfig(token, []byte(seed))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, c := range map[string]struct{ file, want string }{
		"nkey":                     {seed, ""},
		"nkey with a line break":   {seed + "\n", ""},
		"nkey of an account":       {accountSeed, "nkey_file: holds the NKey seed of an account"},
		"nkey cut off":             {seed[:20], "nkey_file: holds no NKey seed"},
		"nkey in quotes":           {`"` + seed + `"`, "nkey_file: holds no NKey seed"},
		"empty nkey":               {"", "nkey_file: holds no NKey seed"},
		"creds":                    {creds(token, seed), ""},
		"creds of another's seed":  {strings.Replace(creds(token, seed), seed, other, 1), "credentials_file: holds the JWT of one user and the seed of another"},
		"creds without a JWT":      {"-----BEGIN USER NKEY SEED-----\n" + seed + "\n------END USER NKEY SEED------\n", "credentials_file: holds no JWT"},
		"creds that are something": {"password", "credentials_file: holds no NKey seed"},
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		l := natsclient.Login{CredentialsFile: path}
		if strings.Contains(name, "nkey") {
			l = natsclient.Login{NKeyFile: path}
		}
		var p config.Invalids
		l.Check("", &p)
		switch err := p.Err(); {
		case c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		case err != nil && len(c.file) > 8 && strings.Contains(err.Error(), c.file[:8]):
			t.Errorf("%s is shown: %v", name, err)
		case err == nil:
			if _, err := l.Options(); err != nil {
				t.Errorf("%s is refused by the client: %v", name, err)
			}
		}
	}
}
