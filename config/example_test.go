package config_test

import (
	"fmt"
	"os"

	"github.com/postwire/postwire/config"
)

// An error names the position, the key, the cause and a fix.
func ExampleParse() {
	_, err := config.Parse("postwire.yaml", []byte("journal: {retenton: 7d}\n"), os.LookupEnv)
	fmt.Println(err)
	// Output: postwire.yaml:1:11: journal.retenton: unknown key; did you mean "retention"?
}
