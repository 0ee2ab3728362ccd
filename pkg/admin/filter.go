package admin

import (
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/filter"
)

// filterParameter is the name of the query parameter with a filter.
const filterParameter = "filter"

// checkedFilter adds a check of the query parameter filter to an operation. A filter
// with an attribute that no configured source sets would match nothing, and is refused.
func (a *API) checkedFilter(api huma.API, o huma.Operation) huma.Operation {
	o.Middlewares = append(o.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		if err := a.checkFilter(ctx.Query(filterParameter)); err != nil {
			// An error of writing means that the client has disconnected.
			_ = huma.WriteErr(api, ctx, http.StatusUnprocessableEntity, "validation failed", &huma.ErrorDetail{Message: err.Error(), Location: "query." + filterParameter, Value: ctx.Query(filterParameter)})
			return
		}
		next(ctx)
	})
	return o
}

// checkFilter parses a filter, and checks the attribute names against the configured
// sources.
func (a *API) checkFilter(text string) error {
	f, err := filter.Parse(text)
	if err == nil {
		err = f.Check(a.Attributes())
	}
	if err != nil {
		return fmt.Errorf("the filter %w", err)
	}
	return nil
}
