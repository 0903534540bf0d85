//! Under which names we may be called, and by which web pages.
//!
//! A page of a stranger can have its own name resolve to our address (DNS rebinding); the browser then takes us for the page's
//! own server. But it says the page's name in `Host`. A page of a stranger may also open a WebSocket to us, which no rule of
//! browsers prevents; but it says where the page is from in `Origin`.

use crate::problem::Problem;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// What proxies add to a request.
const OF_PROXIES: [&str; 6] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via"];

/// An address that clients are told, `http://HOST`, with a port and a path if need be, and without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    text: String,
    authority: Authority,
}

/// What a request may say in `Host` and `Origin`.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// In lower case, without ports. None: any.
    names: Option<BTreeSet<String>>,
    /// Addresses are no names that could be made to resolve to another one.
    any_address: bool,
    /// Of the pages that clients get from us by way of a proxy that calls us otherwise.
    advertised: Option<Authority>,
    origins: Vec<String>,
}

impl Hosts {
    /// For a listener. Beyond loopback, and with no name advertised or allowed, we cannot know how we are called: anything goes.
    pub fn new(listen: SocketAddr, advertised: Option<&BaseUrl>, allowed: &[String], origins: Vec<String>) -> Hosts {
        let advertised = advertised.map(|url| url.authority.clone());
        let loopback = listen.ip().is_loopback();
        let known = loopback || advertised.is_some() || !allowed.is_empty();
        let named = advertised.iter().map(|authority| authority.host().to_ascii_lowercase());
        let allowed = allowed.iter().map(|name| name.to_ascii_lowercase());
        let own = ["localhost".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned(), bracketed(listen.ip())];
        let names = known.then(|| named.chain(allowed).chain(own).collect());
        Hosts { names, any_address: !loopback, advertised, origins }
    }

    /// Under any name; for what only operators see, and for tests.
    pub fn any() -> Hosts {
        Hosts { names: None, any_address: true, advertised: None, origins: Vec::new() }
    }

    /// Whether the request is meant for us.
    ///
    /// # Errors
    /// 421 `wrong_host`.
    pub fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(names) = &self.names else { return Ok(()) };
        let in_header = self.is_ours(names, the_host(headers).as_ref());
        // In the form for proxies, the request line names the host.
        let in_line = uri.authority().is_none_or(|authority| self.is_ours(names, Some(authority)));
        if in_header && in_line {
            return Ok(());
        }
        let detail = "this server does not go by the name in Host: see --advertise-url and --allowed-hosts";
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", detail))
    }

    /// Whether a page of this origin may open a WebSocket. What is no browser says no origin.
    ///
    /// # Errors
    /// 403 `origin_not_allowed`.
    pub fn check_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let page = origin.to_str().ok().and_then(|origin| origin.split_once("://")?.1.parse::<Authority>().ok());
        let same = page.is_some_and(|page| {
            let same = |other: &Authority| page.as_str().eq_ignore_ascii_case(other.as_str());
            the_host(headers).as_ref().is_some_and(same) || self.advertised.as_ref().is_some_and(same)
        });
        if origins.next().is_none() && (same || self.allows(origin)) {
            return Ok(());
        }
        let detail = "pages of this origin may not connect: see --allowed-origins";
        Err(Problem::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail))
    }

    /// The caller's origin if it is another one and allowed.
    pub fn cross_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        headers.get(header::ORIGIN).filter(|origin| self.allows(origin)).cloned()
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|allowed| origin == allowed.as_str())
    }

    fn is_ours(&self, names: &BTreeSet<String>, host: Option<&Authority>) -> bool {
        let Some(host) = host.filter(|host| !host.as_str().contains('@')) else { return false };
        let name = host.host().to_ascii_lowercase();
        let is_address = || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        names.contains(&name) || (self.any_address && is_address())
    }
}

/// Whether a request comes from this machine without a detour, as far as it says: a proxy here would be our neighbour for anybody.
///
/// # Errors
/// 403 `not_local`.
pub fn check_local(headers: &HeaderMap) -> Result<(), Problem> {
    let is_local = |host: Authority| {
        let name = host.host().trim_matches(['[', ']']);
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    if the_host(headers).is_some_and(is_local) && !OF_PROXIES.iter().any(|name| headers.contains_key(*name)) {
        return Ok(());
    }
    let detail = "only for who asks for localhost on this machine, and not by way of a proxy";
    Err(Problem::new(StatusCode::FORBIDDEN, "not_local", detail))
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<BaseUrl, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let (default_port, path_at) = (default_port(scheme)?, rest.find('/').unwrap_or(rest.len()));
        let (authority, path) = rest.split_at(path_at);
        let authority = parsed_authority(authority.strip_suffix(default_port).unwrap_or(authority))?;
        if path.contains(|letter: char| "?#\\".contains(letter) || letter.is_whitespace() || !letter.is_ascii()) {
            return Err("behind the host there may only be a path".to_owned());
        }
        Ok(BaseUrl { text: format!("{scheme}://{authority}{}", path.trim_end_matches('/')), authority })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// An origin as browsers say it: `https://HOST`, with the port if it is not the scheme's own.
///
/// # Errors
/// What is wrong with it.
pub fn origin(text: &str) -> Result<String, String> {
    let url: BaseUrl = text.parse()?;
    if text != url.text || !text.ends_with(url.authority.as_str()) {
        return Err("an origin has no path, no slash at its end, and no port that is the scheme's own".to_owned());
    }
    Ok(url.text.to_ascii_lowercase())
}

/// A name as in `Host`, without a port.
///
/// # Errors
/// What is wrong with it.
pub fn host_name(text: &str) -> Result<String, String> {
    let authority = parsed_authority(text)?;
    if authority.host() != text {
        return Err("a name, without a port".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

fn default_port(scheme: &str) -> Result<&'static str, String> {
    match scheme {
        "http" => Ok(":80"),
        "https" => Ok(":443"),
        _ => Err("has to start with http:// or https://".to_owned()),
    }
}

/// A host that somebody can connect to, perhaps with a port.
fn parsed_authority(text: &str) -> Result<Authority, String> {
    let authority: Authority = text.parse().map_err(|_| format!("{text:?} is no host"))?;
    let host = authority.host();
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let good_port = text.len() == host.len() || text[host.len()..].strip_prefix(':').is_some_and(is_port);
    let bare = host.trim_matches(['[', ']']);
    // No star, say, which would be no more than a name with a star.
    let is_plain = bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
    if bare.is_empty() || !is_plain || text.contains('@') || !good_port {
        return Err(format!("{text:?} is no host, nor a host and a port"));
    }
    if bare.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
        return Err(format!("{host} is where one listens: nobody can be called so"));
    }
    Ok(authority)
}

/// What the one `Host` header says.
fn the_host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next()?.to_str().ok()?.parse().ok();
    if hosts.next().is_some() { None } else { host }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(listen: &str, advertised: Option<&str>, allowed: &[&str]) -> Hosts {
        let allowed: Vec<String> = allowed.iter().map(|name| host_name(name).expect("a name")).collect();
        let advertised: Option<BaseUrl> = advertised.map(|url| url.parse().expect("an address"));
        let origins = vec![origin("https://app.example").expect("an origin")];
        Hosts::new(listen.parse().expect("an address"), advertised.as_ref(), &allowed, origins)
    }

    fn headers(lines: &[(header::HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a value"))).collect()
    }

    fn may(hosts: &Hosts, host: &str) -> bool {
        hosts.check_host(&Uri::from_static("/v1/gateway"), &headers(&[(header::HOST, host)])).is_ok()
    }

    #[test]
    fn on_loopback_only_its_own_names() {
        let hosts = hosts("127.0.0.1:8080", None, &["Nearby.test"]);
        for host in ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:9", "[::1]:8080", "nearby.TEST:80"] {
            assert!(may(&hosts, host), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "0.0.0.0:8080", "10.0.0.1", "127.0.0.2", "a@localhost", "", "["]
        {
            assert!(!may(&hosts, host), "{host}");
        }
        let twice = headers(&[(header::HOST, "localhost")]);
        let mut twice = twice;
        twice.append(header::HOST, HeaderValue::from_static("evil.example"));
        for (headers, uri) in [
            (HeaderMap::new(), "/"),
            (twice, "/"),
            (headers(&[(header::HOST, "localhost")]), "http://evil.example/"),
            (headers(&[(header::HOST, "evil.example")]), "http://localhost/"),
        ] {
            let refused = hosts.check_host(&uri.parse().expect("a URI"), &headers).expect_err("not ours");
            assert_eq!((refused.status.as_u16(), refused.code), (421, "wrong_host"), "{headers:?} {uri}");
        }
    }

    #[test]
    fn beyond_it_also_addresses_and_what_is_advertised() {
        let hosts_known = hosts("0.0.0.0:8081", Some("https://g1.example:444"), &["g.internal"]);
        for host in ["g1.example:444", "G1.example", "g.internal:8081", "10.1.2.3:8081", "[fd00::1]", "localhost:8081"]
        {
            assert!(may(&hosts_known, host), "{host}");
        }
        assert!(!may(&hosts_known, "evil.example"));
        let unknown = hosts("0.0.0.0:8080", None, &[]);
        assert!(may(&unknown, "ingest:8080"), "nobody has said how we are called");
    }

    #[test]
    fn pages_of_the_same_host_and_of_allowed_origins() {
        let hosts = hosts("0.0.0.0:8081", Some("https://g1.example"), &[]);
        let may = |origin: &str| {
            let headers = headers(&[(header::HOST, "10.0.0.1:8081"), (header::ORIGIN, origin)]);
            hosts.check_origin(&headers).map_err(|refused| assert_eq!(refused.code, "origin_not_allowed")).is_ok()
        };
        for origin in ["http://10.0.0.1:8081", "https://g1.example", "https://app.example"] {
            assert!(may(origin), "{origin}");
        }
        for origin in
            ["null", "", "https://evil.example", "http://10.0.0.1", "http://app.example", "https://app.example.evil"]
        {
            assert!(!may(origin), "{origin}");
        }
        assert!(hosts.check_origin(&headers(&[(header::HOST, "x")])).is_ok(), "no browser, no origin");
        let allowed = headers(&[(header::ORIGIN, "https://app.example")]);
        assert_eq!(hosts.cross_origin(&allowed), Some(HeaderValue::from_static("https://app.example")));
        assert_eq!(hosts.cross_origin(&headers(&[(header::ORIGIN, "https://evil.example")])), None);
    }

    #[test]
    fn what_clients_are_told_is_an_address() {
        let told = |text: &str| text.parse::<BaseUrl>().map(|url| url.to_string());
        for (given, kept) in [
            ("http://127.0.0.1:8081", "http://127.0.0.1:8081"),
            ("https://g1.example/", "https://g1.example"),
            ("https://g1.example:443/near//", "https://g1.example/near"),
            ("http://[::1]:80", "http://[::1]"),
            ("http://g1.example:443", "http://g1.example:443"),
        ] {
            assert_eq!(told(given).as_deref(), Ok(kept));
        }
        for refused in [
            "",
            "g1.example",
            "g1.example:443",
            "https:/g1.example",
            "https://",
            "https:///x",
            "ftp://g1.example",
            "HTTPS://g1.example",
            "https://:443",
            "https://g1.example:",
            "https://g1.example:x",
            "https://g1.example:0",
            "https://g1.example:65536",
            "https://user@g1.example",
            "https://g1 .example",
            "https://g1.example/a b",
            "https://g1.example/?a",
            "https://g1.example#a",
            "https://g1.example?a",
            "http://0.0.0.0:8081",
            "http://[::]",
            "http://[::1",
            "https://a,https://b",
        ] {
            assert!(told(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn names_and_origins_are_such_as_can_be_met() {
        assert_eq!(host_name("G1.Example").as_deref(), Ok("g1.example"));
        assert_eq!(host_name("[::1]").as_deref(), Ok("[::1]"));
        for refused in ["", " ", "g1.example:80", "https://g1.example", "g1.example/", "a@b", "0.0.0.0", "*"] {
            assert!(host_name(refused).is_err(), "{refused}");
        }
        assert_eq!(origin("https://App.Example:8443").as_deref(), Ok("https://app.example:8443"));
        for refused in [
            "",
            "*",
            "null",
            "app.example",
            "https://app.example/",
            "https://app.example/a",
            "https://app.example:443",
            "http://a:80",
        ] {
            assert!(origin(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_proxy_on_this_machine_is_not_this_machine() {
        let local = |lines: &[(&'static str, &str)]| {
            let lines: Vec<_> =
                lines.iter().map(|(name, value)| (header::HeaderName::from_static(name), *value)).collect();
            check_local(&headers(&lines))
                .map_err(|refused| assert_eq!((refused.status.as_u16(), refused.code), (403, "not_local")))
                .is_ok()
        };
        for host in ["localhost:8080", "LocalHost", "127.0.0.1:8080", "127.0.0.9", "[::1]:8080"] {
            assert!(local(&[("host", host)]), "{host}");
        }
        for host in ["near.example", "localhost.evil.example", "10.0.0.1", "[fd00::1]", "0.0.0.0", ""] {
            assert!(!local(&[("host", host)]), "{host}");
        }
        for name in OF_PROXIES {
            assert!(!local(&[("host", "localhost"), (name, "x")]), "{name}");
        }
        assert!(!local(&[]) && !local(&[("host", "localhost"), ("host", "localhost")]));
    }
}
