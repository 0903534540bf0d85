// A schema registry for the tests: the fake of franz-go behind a door that can be shut.
//
// Arguments: an address to listen on, an Authorization header that it insists on (or ""), and a subject whose schemas it
// refuses (or ""), because the fake itself takes everything. SIGUSR1 makes it refuse connections, SIGUSR2 take them again.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/twmb/franz-go/pkg/sr/srfake"
)

func main() {
	address, authorization, refused := os.Args[1], os.Args[2], os.Args[3]
	var options []srfake.Option
	if authorization != "" {
		options = append(options, srfake.WithAuth(authorization))
	}
	registry := srfake.NewRegistry(options...)
	registry.Intercept(func(answer http.ResponseWriter, request *http.Request) bool {
		fmt.Println(request.Method, request.URL.Path)
		refuse := refused != "" && request.Method == http.MethodPost && request.URL.Path == "/subjects/"+refused+"/versions"
		if refuse {
			answer.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
			answer.WriteHeader(http.StatusConflict)
			fmt.Fprint(answer, `{"error_code":409,"message":"Schema being registered is incompatible with an earlier schema"}`)
		}
		return refuse
	})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	server := open(address, registry.Handler())
	for received := range signals {
		if received == syscall.SIGUSR1 {
			check(server.Close())
		} else {
			server = open(address, registry.Handler())
		}
	}
}

func open(address string, handler http.Handler) *http.Server {
	listener, err := net.Listen("tcp", address)
	check(err)
	server := &http.Server{Handler: handler}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			check(err)
		}
	}()
	return server
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
