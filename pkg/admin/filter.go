package admin

import (
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/filter"
)

// filterParameter is the query parameter that holds a filter.
const filterParameter = "filter"

// knownFilter refuses a request whose query parameter filter uses an attribute
// that no configured source sets: such a filter would match nothing.
func (a *API) knownFilter(api huma.API, o huma.Operation) huma.Operation {
	o.Middlewares = append(o.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		if err := a.checkFilter(ctx.Query(filterParameter)); err != nil {
			// The client sees the status, or is gone.
			_ = huma.WriteErr(api, ctx, http.StatusUnprocessableEntity, "validation failed", &huma.ErrorDetail{Message: err.Error(), Location: "query." + filterParameter, Value: ctx.Query(filterParameter)})
			return
		}
		next(ctx)
	})
	return o
}

// checkFilter says what is wrong with a filter over the attributes of the
// configured sources.
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
