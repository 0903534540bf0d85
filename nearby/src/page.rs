//! The live map and the handshake page, built into the binary: they need no file and no other host.

use http::{HeaderValue, header};
use nearby_service::http::Routes;
use warp::Filter;
use warp::reply::Response;

const FILES: &[(&str, &str, &str)] = &[
    ("", "text/html; charset=utf-8", include_str!("../../web/index.html")),
    ("handshake", "text/html; charset=utf-8", include_str!("../../web/handshake.html")),
    ("handshake.css", "text/css; charset=utf-8", include_str!("../../web/handshake.css")),
    ("handshake.js", "text/javascript; charset=utf-8", include_str!("../../web/handshake.js")),
    ("map.css", "text/css; charset=utf-8", include_str!("../../web/map.css")),
    ("app.js", "text/javascript; charset=utf-8", include_str!("../../web/app.js")),
    ("map.js", "text/javascript; charset=utf-8", include_str!("../../web/map.js")),
    ("nearby.js", "text/javascript; charset=utf-8", include_str!("../../web/nearby.js")),
    ("panel.js", "text/javascript; charset=utf-8", include_str!("../../web/panel.js")),
    ("tokens.js", "text/javascript; charset=utf-8", include_str!("../../web/tokens.js")),
    ("way.js", "text/javascript; charset=utf-8", include_str!("../../web/way.js")),
];

/// `GET /`, `GET /handshake` and what these pages load.
pub fn routes() -> Routes {
    warp::path::full()
        .and(warp::method())
        .and_then(|path: warp::path::FullPath, method: http::Method| async move {
            let name = path.as_str().trim_start_matches('/');
            let file = FILES.iter().find(|(known, _, _)| *known == name);
            let (_, content_type, text) = file.ok_or_else(warp::reject::not_found)?;
            if method != http::Method::GET {
                return Err(warp::reject::not_found());
            }
            let mut response = Response::new((*text).into());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            // The page belongs to the binary: a new one must not run with yesterday's scripts.
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            Ok::<_, warp::Rejection>(response)
        })
        .boxed()
}
