package schema_test

import (
	"fmt"

	"github.com/postwire/postwire/pkg/schema"
)

// The attribute dataschema of an event names a schema by type and version.
func ExampleParseDataSchema() {
	name, ok := schema.ParseDataSchema("https://schemas.example.com/com.example.order/2", "https://schemas.example.com")
	fmt.Println(name.Type, name.Version, ok)
	// Output: com.example.order 2 true
}
